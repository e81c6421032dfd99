"""How weights are held: what each way takes, how fast it is and what it loses, beside plain weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import BASELINE, Row, Setting, group
from pipeline.record import Arm, Interval
from pipeline.report.models.architectures import recall, text
from pipeline.report.sentences import ORDER
from pipeline.report.tables import STATUS, Table, link

PLAIN = "none"  # the reference
PARTS = ("quantised layers", "other layers", "embeddings and head")  # as `pipeline.memory.weights` names them
REFERENCE = "reference"
AT_MOST = "\N{LESS-THAN OR EQUAL TO} "
Verdict = tuple[str, float]  # the word, and what it is said of


@dataclass(frozen=True)
class Place:
    """Where ways of holding weights are compared: one model at one length and batch."""

    model: str
    workload: str
    seq_len: int
    batch: int
    rows: list[Row]  # plain weights first, then from most to least bytes

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.record.cost]

    @property
    def references(self) -> list[Arm]:
        """Plain weights as they ran beside each way; empty where they are a row of their own."""
        is_row = any(is_plain(row) for row in self.timed)
        return [] if is_row else [row.record.cost.full for row in self.timed if row.record.cost]

    @property
    def judged(self) -> list[Row]:
        return [row for row in self.rows if row.record.quality]

    @property
    def where(self) -> str:
        batch = f", batch {q.count(self.batch)}" if self.batch > 1 else ""
        return f"`{self.model}` at {q.count(self.seq_len)} tokens{batch}"


def setting_of(row: Row) -> Setting:
    """What must be shared to stand in one section."""
    return replace(row.setting, model="", workload="", weights="", baseline="", n_new_tokens=0)


def title(setting: Setting) -> str:
    return f"machine `{setting.hardware_id}` ({setting.dtype}, {setting.device}, seed {setting.seed})"


def name(row: Row) -> str:
    """`bnb_nf4`, with what was changed, `lorc, rank=8`, or the cache that came with it: `bnb_nf4 × h2o`."""
    head, *changes = row.cell.weights.split("+")
    own = ", ".join([head, *(change.partition(".")[2] for change in changes if not change.endswith("=None"))])
    return own if row.strategy == BASELINE else f"{own} {q.TIMES} {row.strategy}"


def places(rows: Sequence[Row]) -> list[Place]:
    grouped = group(rows, lambda row: (row.cell.model, row.cell.workload, row.cell.seq_len, row.cell.batch))
    return [Place(*where, sorted(members, key=_order)) for where, members in grouped.items()]


def _order(row: Row) -> tuple[bool, int, str]:
    predicted = row.record.predicted
    return not is_plain(row), -(predicted.weight_bytes if predicted else 0), name(row)


def is_plain(row: Row) -> bool:
    return row.cell.weights == PLAIN and row.strategy == BASELINE


def weight_bytes(arm: Arm) -> int:
    return sum(arm.weight_bytes.values())


def saved(row: Row) -> float:
    """Share of the plain weights' bytes that are not taken."""
    assert row.record.cost
    return 1 - weight_bytes(row.record.cost.technique) / weight_bytes(row.record.cost.full)


def tables(found: Sequence[Place], reports_dir: Path) -> Iterator[tuple[str, Table]]:
    for place in found:
        if place.timed:
            yield f"Memory of {place.where}", _memory(place, reports_dir)
            yield f"Time of {place.where}", _time(place)
        if place.judged:
            yield f"Quality of {place.where}", _quality(place, reports_dir)
    if (missing := _missing(found)).rows:
        yield "Not measured, and why", missing


def _memory(place: Place, reports_dir: Path) -> Table:
    columns = [("Weights", "l"), ("Held", "r"), ("Saved", "r"), ("In quantised layers", "r"), ("In other layers", "r")]
    columns += [("Embeddings and head", "r"), ("KV at most", "r"), ("Peak", "r")]
    lines = [[f"`{PLAIN}`", *_memory_cells(place.references, REFERENCE)]] if place.references else []
    return Table(columns, [*lines, *(_memory_line(row, reports_dir) for row in place.timed)])


def _memory_line(row: Row, reports_dir: Path) -> list[str]:
    assert row.record.cost
    linked = link(row, f"`{name(row)}`", reports_dir)
    return [linked, *_memory_cells([row.record.cost.technique], REFERENCE if is_plain(row) else q.share(saved(row)))]


def _memory_cells(arms: Sequence[Arm], saving: str) -> list[str]:
    """Of one arm, or of the reference as it ran beside each of several."""
    parts = ([arm.weight_bytes.get(part, 0) for arm in arms] for part in PARTS)
    peaks = [arm.peak_memory_bytes for arm in arms if arm.peak_memory_bytes is not None]
    return [
        _from_to([weight_bytes(arm) for arm in arms], q.data),
        saving,
        *(_from_to(part, q.data) if any(part) else q.DASH for part in parts),
        _from_to([max(arm.kv_bytes_held) for arm in arms], q.data),
        _from_to(peaks, q.data) if peaks else q.DASH,
    ]


def _from_to(values: Sequence[float], write: Callable[[float], str]) -> str:
    return " to ".join(dict.fromkeys(write(end) for end in (min(values), max(values))))


def _time(place: Place) -> Table:
    columns = [("Weights", "l"), ("First token", "r"), ("Plain beside it", "r"), ("Over plain", "r"), ("is", "l")]
    columns += [("Decode step", "r"), ("Plain beside it", "r"), ("Over plain", "r"), ("is", "l"), ("Tokens per s", "r")]
    lines = [[f"`{PLAIN}`", *_reference_times(place.references)]] if place.references else []
    return Table(columns, [*lines, *(_time_line(row) for row in place.timed)])


def _reference_times(arms: Sequence[Arm]) -> list[str]:
    first = _from_to([arm.ttft_s_p50 for arm in arms], q.seconds)
    step = _from_to([arm.tpot_s_p50 for arm in arms], q.seconds)
    rate = _from_to([arm.decode_tokens_per_s for arm in arms], q.three)
    return [first, q.DASH, q.DASH, REFERENCE, step, q.DASH, q.DASH, REFERENCE, rate]


def _time_line(row: Row) -> list[str]:
    cost = row.record.cost
    assert cost
    arm, plain = cost.technique, cost.full
    first = _timed(row, arm.ttft_s_p50, plain.ttft_s_p50, cost.ttft_ratio, cost.aa_ttft_ratio)
    step = _timed(row, arm.tpot_s_p50, plain.tpot_s_p50, cost.tpot_ratio, cost.aa_tpot_ratio)
    return [f"`{name(row)}`", *first, *step, q.three(arm.decode_tokens_per_s)]


def _timed(row: Row, seconds: float, plain_s: float, ratio: Interval, noise: Interval | None) -> list[str]:
    """With the time of plain weights beside this very row: a ratio is to that, and a machine has slower hours."""
    if is_plain(row):
        return [q.seconds(seconds), q.DASH, q.DASH, REFERENCE]
    return [q.seconds(seconds), q.seconds(plain_s), q.ratio_interval(ratio), verdicts.speed(ratio, noise)]


def _quality(place: Place, reports_dir: Path) -> Table:
    columns = [("Weights", "l"), ("Held", "r"), ("Recall", "r"), ("Difference", "r"), ("is", "l")]
    columns += [("Text loss, nats", "r"), ("Difference", "r"), ("is", "l"), ("KL, nats", "r"), ("Same word", "r")]
    return Table(columns, [_quality_line(row, reports_dir) for row in place.judged])


def _quality_line(row: Row, reports_dir: Path) -> list[str]:
    return [link(row, f"`{name(row)}`", reports_dir), _held(row), *_recall_cells(row), *_text_cells(row)]


def _held(row: Row) -> str:
    """Counted where cost was measured too, else computed from shapes, which is the most where data decide the rank."""
    if row.record.cost:
        return q.data(weight_bytes(row.record.cost.technique))
    predicted = row.record.predicted
    if predicted is None:
        return q.DASH
    return f"{AT_MOST if _by_energy(row) else ''}{q.data(predicted.weight_bytes)}"


def _recall_cells(row: Row) -> list[str]:
    """As fine as its verdict."""
    own = recall(row)
    if own is None:
        return [q.DASH, q.DASH, "not measured"]
    if is_plain(row):
        return [q.decimal_interval(own.accuracy, verdicts.DECIMALS), q.DASH, REFERENCE]
    reached = q.decimal(own.accuracy.estimate, verdicts.DECIMALS)
    return [reached, q.signed_interval(own.difference, verdicts.DECIMALS), verdicts.accuracy(own.difference)]


def _text_cells(row: Row) -> list[str]:
    own = text(row)
    if own is None:
        return [q.DASH, q.DASH, "not measured", q.DASH, q.DASH]
    if is_plain(row):
        return [q.decimal(own.nll, 3), q.DASH, REFERENCE, q.DASH, q.DASH]
    difference = q.signed_interval(own.nll_difference, 3)
    verdict = verdicts.loss(own.nll_difference)
    return [q.decimal(own.nll, 3), difference, verdict, q.decimal(own.kl_to_full, 4), q.share(own.top1_agreement)]


def _missing(found: Sequence[Place]) -> Table:
    columns = [("Weights", "l"), ("Where", "l"), ("Status", "l"), ("Why", "l"), ("What would help", "l")]
    failed = [(place, row) for place in found for row in place.rows if row.record.status != "ok"]
    return Table(columns, [[f"`{name(row)}`", place.where, *_why(row)] for place, row in failed])


def _why(row: Row) -> list[str]:
    record = row.record
    return [STATUS[record.status], q.free_text(record.reason), q.free_text(record.remedy)]


def sentences(found: Sequence[Place]) -> list[str]:
    return [line for place in found for line in _said(place) if line]


def _said(place: Place) -> Iterator[str]:
    timed = [row for row in place.timed if not is_plain(row)]
    if timed:
        yield _least(place, timed)
    yield from _uncut(place)
    for what, of, write in JUDGED:
        found = [(*verdict, name(row)) for row in place.rows if not is_plain(row) and (verdict := of(row))]
        if found:
            yield f"{place.where}, {what} beside plain weights: {_grouped(found, write)}."


def _low_rank(row: Row) -> dict[str, Any]:
    """How its matrices are cut into factors; empty where they are not."""
    transforms = row.config("weights").get("transforms") or {}
    return next((one for one in transforms.values() if str(one.get("_target_", "")).endswith(".LowRankInt8")), {})


def _by_energy(row: Row) -> bool:
    return _low_rank(row).get("energy") is not None


def _uncut(place: Place) -> Iterator[str]:
    """What holds as many bytes as its matrices whole: with a share of the squares for a rank, shapes predict those."""
    whole = {row.record.predicted.weight_bytes for row in place.rows if row.record.predicted and _by_energy(row)}
    found = [row for row in place.rows if _certain_bytes(row) in whole]
    uncut, alike = ([name(row) for row in found if bool(_low_rank(row)) is of] for of in (True, False))
    if uncut:
        is_random = place.rows[0].config("model").get("source") == "random"
        full = ", which of random matrices is nearly full," if is_random else ""
        same = f", so that as many bytes are held as by {q.words(f'`{own}`' for own in alike)}" if alike else ""
        yield (
            f"{place.where}: no matrix is cut by {q.words(f'`{own}`' for own in uncut)}: factors of the rank asked for"
            f"{full} would take no less than the matrix in 8 bits{same}."
        )


def _certain_bytes(row: Row) -> int | None:
    """None where data decide and nothing was counted."""
    if row.record.cost:
        return weight_bytes(row.record.cost.technique)
    return row.record.predicted.weight_bytes if row.record.predicted and not _by_energy(row) else None


def _least(place: Place, rows: Sequence[Row]) -> str:
    least = max(rows, key=lambda row: (saved(row), name(row)))
    assert least.record.cost
    held = q.data(weight_bytes(least.record.cost.technique))
    others = [row for row in rows if saved(row) <= 0]
    more = f"; {q.words(f'`{name(row)}`' for row in others)} saved nothing" if others else ""
    return f"{place.where}: `{name(least)}` holds least, {held}, {q.share(saved(least))} less than plain weights{more}."


def _first_token(row: Row) -> Verdict | None:
    cost = row.record.cost
    return (verdicts.speed(cost.ttft_ratio, cost.aa_ttft_ratio), cost.ttft_ratio.estimate) if cost else None


def _step(row: Row) -> Verdict | None:
    cost = row.record.cost
    return (verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio), cost.tpot_ratio.estimate) if cost else None


def _recalled(row: Row) -> Verdict | None:
    own = recall(row)
    return (verdicts.accuracy(own.difference), own.difference.estimate) if own else None


def _read(row: Row) -> Verdict | None:
    own = text(row)
    return (verdicts.loss(own.nll_difference), own.nll_difference.estimate) if own else None


def _three(value: float) -> str:
    return q.signed(value, verdicts.DECIMALS)


JUDGED: tuple[tuple[str, Callable[[Row], Verdict | None], Callable[[float], str]], ...] = (
    ("first token", _first_token, q.ratio),
    ("decode step", _step, q.ratio),
    ("recall", _recalled, _three),
    ("loss on text in nats", _read, _three),
)


def _grouped(found: Sequence[tuple[str, float, str]], write: Callable[[float], str]) -> str:
    """`faster: a (0.41×) and b (0.9×); no difference found: c (1.00×)`"""
    ordered = sorted(found, key=lambda one: (ORDER.index(one[0]), one[1]))
    return "; ".join(
        f"{word}: {q.words(f'`{own}` ({write(value)})' for _, value, own in members)}"
        for word, members in group(ordered, lambda one: one[0]).items()
    )
