"""Techniques in order of one quantity; a rank is one more than the number of those that lie wholly below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, fullest, group
from pipeline.findings.means import negated, recall_gain, recall_loss, spread, text_loss
from pipeline.findings.orders import ranks
from pipeline.record import Interval
from pipeline.report.tables import Table, why_empty


@dataclass(frozen=True)
class Quantity:
    """What a ranking is by; `of` gives None where it was not measured, smallest is best."""

    title: str
    heading: str
    of: Callable[[Row], Interval | None]
    write: Callable[[Interval], str]
    judge: Callable[[Row], str]


@dataclass(frozen=True)
class Ranking:
    """A table with what it leaves out; `absent` is a sentence or empty."""

    title: str
    table: Table
    absent: str


def rankings(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[Ranking]:
    """Of one setting: at the length of each batch that most techniques share, by every quantity measured there."""
    found = []
    for batch, members in group(rows, lambda row: row.cell.batch).items():
        for quantity in QUANTITIES:
            rivals = fullest(members, [row for row in members if quantity.of(row)])
            ranked = [(row, value) for row in rivals if (value := quantity.of(row)) and value.n != 1]
            if len(ranked) > 1:
                where = f"{quantity.title}, {q.count(rivals[0].cell.seq_len)} tokens, batch {q.count(batch)}"
                found.append(Ranking(where, _table(ranked, names, quantity), _absent(rivals, names, quantity)))
    return found


def _table(ranked: Sequence[tuple[Row, Interval]], names: Mapping[tuple[str, str], str], quantity: Quantity) -> Table:
    numbered = zip(ranks([value for _, value in ranked]), ranked, strict=True)
    lines = [
        [str(rank), names[row.strategy, row.variant], quantity.write(value), quantity.judge(row)]
        for rank, (row, value) in sorted(numbered, key=lambda x: (x[0], x[1][1].estimate))
    ]
    against = f"Against {ranked[0][0].setting.reference}"
    return Table([("Rank", "r"), ("Technique", "l"), (quantity.heading, "r"), (against, "l")], lines)


def _absent(rows: Iterable[Row], names: Mapping[tuple[str, str], str], quantity: Quantity) -> str:
    left_out = []
    for row in rows:
        value = quantity.of(row)
        if value is None or value.n == 1:
            left_out.append(f"{names[row.strategy, row.variant]} ({verdicts.ONE_SAMPLE if value else why_empty(row)})")
    return f"Not ranked here: {q.words(left_out)}." if left_out else ""


def decode_speed(row: Row) -> Interval | None:
    return row.record.cost.tpot_ratio if row.record.cost else None


def _speed(row: Row) -> str:
    cost = row.record.cost
    return verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio) if cost else verdicts.UNDEFINED


def memory(row: Row) -> Interval | None:
    """Counted, not sampled: `n` is 0."""
    if row.share is None:
        return None
    share = round(row.share, 3)
    return Interval(estimate=share, low=share, high=share, n=0)


def _memory(row: Row) -> str:
    return "" if row.share is None else "more" if row.share > 1 else "less" if row.share < 1 else "the same"


def stability(row: Row) -> Interval | None:
    return spread(row.record.cost.technique.step_s) if row.record.cost else None


def _stability(row: Row) -> str:
    cost = row.record.cost
    arms = (cost.technique, cost.full, cost.full_again) if cost else ()
    spreads = [found for arm in arms if (found := spread(arm.step_s))]
    return verdicts.stability(*spreads) if len(spreads) == 3 else verdicts.UNDEFINED


def _recall(row: Row) -> str:
    gain = recall_gain(row)
    return verdicts.accuracy(gain) if gain else verdicts.UNDEFINED


def _text(row: Row) -> str:
    loss = text_loss(row)
    return verdicts.loss(loss) if loss else verdicts.UNDEFINED


QUANTITIES = (
    Quantity("Speed", "Decode step, as a ratio", decode_speed, q.ratio_interval, _speed),
    Quantity("Memory", "KV bytes held, as a share", memory, lambda value: q.share(value.estimate), _memory),
    Quantity("Stability", "Decode steps, p90 over p50", stability, q.decimal_interval, _stability),
    Quantity(
        "Recall",
        "Accuracy difference, query-agnostic, mean over tasks",
        recall_loss,
        lambda value: q.signed_interval(negated(value)),
        _recall,
    ),
    Quantity("Text", "Loss difference, nats", text_loss, lambda value: q.signed_interval(value, 3), _text),
)
