"""Techniques in order of one quantity; intervals that overlap share a rank."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.record import Interval, TaskQuality
from pipeline.report import quantities as q
from pipeline.report.evidence import Row, group
from pipeline.report.tables import Table, why_empty

Quantity = Callable[[Row], Interval | None]


@dataclass(frozen=True)
class Ranking:
    """A table with what it leaves out; `absent` is a sentence or empty."""

    title: str
    table: Table
    absent: str


def rankings(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[Ranking]:
    """Of one setting: at the longest length of each batch, by every quantity that was measured there."""
    found = []
    for batch, members in group(rows, lambda row: row.cell.batch).items():
        for title, heading, quantity, write in QUANTITIES:
            ranked = [row for row in members if quantity(row)]
            longest = max((row.cell.seq_len for row in ranked), default=None)
            rivals = [row for row in members if row.cell.seq_len == longest]
            if sum(quantity(row) is not None for row in rivals) > 1:
                where = f"{title}, {q.count(longest or 0)} tokens, batch {q.count(batch)}"
                found.append(
                    Ranking(where, _table(rivals, names, heading, quantity, write), _absent(rivals, names, quantity))
                )
    return found


def ranks(values: Sequence[Interval]) -> list[int]:
    """Smallest first: 1 + how many lie wholly below, so that overlapping intervals can share a rank."""
    return [1 + sum(other.high < value.low for other in values) for value in values]


def _table(
    rows: Sequence[Row],
    names: Mapping[tuple[str, str], str],
    heading: str,
    quantity: Quantity,
    write: Callable[[Interval], str],
) -> Table:
    measured = [(row, value) for row in rows if (value := quantity(row))]
    ordered = sorted(
        zip(ranks([value for _, value in measured]), measured, strict=True), key=lambda x: (x[0], x[1][1].estimate)
    )
    lines = [[str(rank), names[row.strategy, row.variant], write(value)] for rank, (row, value) in ordered]
    return Table([("Rank", "r"), ("Technique", "l"), (heading, "r")], lines)


def _absent(rows: Iterable[Row], names: Mapping[tuple[str, str], str], quantity: Quantity) -> str:
    left_out = [f"{names[row.strategy, row.variant]} ({why_empty(row)})" for row in rows if not quantity(row)]
    return f"Not ranked here: {q.words(left_out)}." if left_out else ""


def decode_speed(row: Row) -> Interval | None:
    return row.record.cost.tpot_ratio if row.record.cost else None


def memory(row: Row) -> Interval | None:
    return _exact(round(row.share, 3)) if row.record.cost and row.share is not None else None


def stability(row: Row) -> Interval | None:
    cost = row.record.cost
    return _exact(round(spread(cost.technique.step_s), 2)) if cost and len(cost.technique.step_s) > 1 else None


def recall_loss(row: Row) -> Interval | None:
    """Accuracy lost against the full cache, mean over tasks and protocols: 0 is as good as the full cache."""
    mean = mean_difference(row.record.quality.tasks) if row.record.quality else None
    return mean and _minus(mean)


def text_loss(row: Row) -> Interval | None:
    text = row.record.quality and row.record.quality.text
    return text.nll_difference if text else None


def mean_difference(tasks: Sequence[TaskQuality]) -> Interval | None:
    """Mean of the ends of the intervals: at least as wide as an interval of the mean, so it never claims too much."""
    if not tasks:
        return None
    differences = [task.accuracy_difference for task in tasks]
    estimate, low, high = (
        statistics.fmean(getattr(d, end) for d in differences) for end in ("estimate", "low", "high")
    )
    return Interval(estimate=estimate, low=low, high=high, n=sum(d.n for d in differences))


def spread(samples: Sequence[float]) -> float:
    """p90 / p50"""
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return deciles[8] / deciles[4] if deciles[4] else float("nan")


def _negated(loss: Interval) -> str:
    return q.signed_interval(_minus(loss), 3)


def _minus(value: Interval) -> Interval:
    return Interval(estimate=-value.estimate, low=-value.high, high=-value.low, n=value.n)


def _exact(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value, n=1)


QUANTITIES: tuple[tuple[str, str, Quantity, Callable[[Interval], str]], ...] = (
    ("Speed", "Decode step, as a ratio", decode_speed, q.ratio_interval),
    ("Memory", "KV bytes held, as a share", memory, lambda value: q.share(value.estimate)),
    ("Stability", "Decode steps, p90 over p50", stability, lambda value: q.decimal(value.estimate)),
    ("Quality: recall", "Accuracy difference, mean over tasks and protocols", recall_loss, _negated),
    ("Quality: text", "Loss difference, nats", text_loss, lambda value: q.signed_interval(value, 3)),
)
