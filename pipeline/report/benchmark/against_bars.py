"""Techniques at the point where bars judge them: the bars, what misses one, and what bounds a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline import bars
from pipeline.bars import MISSED, NOISE, OURS, REPORTED, Judged, Plan
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group, label
from pipeline.record import Predicted, Record
from pipeline.report.tables import Table, why_empty

ORDER = (bars.MET, NOISE, MISSED, REPORTED)


def where(plan: Plan) -> str:
    at = plan.judged_at
    return f"{q.count(at.seq_len)} tokens and batch {q.count(at.batch)} on `{at.model}`"


def judged(rows: Iterable[Row], plan: Plan) -> list[Judged]:
    return bars.judge([row.record for row in rows], plan)


def counted(judged: Sequence[Judged]) -> str:
    """`of 64 bars 60 met, 1 within noise of the bar, 3 missed; defects: …`"""
    if not judged:
        return "no technique that has bars was measured."
    counts = group(judged, lambda line: line.verdict.removesuffix(bars.ONE_TRIAL))
    said = q.words(f"{q.count(len(counts[verdict]))} {verdict}" for verdict in ORDER if verdict in counts)
    lines = [line for line in judged if line.is_defect]
    found = q.words(dict.fromkeys(f"`{label(line.strategy)}`" for line in lines)) if lines else ""
    worse = f" Missed and worse than our own full cache, a defect: {found}." if found else ""
    return f"of {q.plural(len(judged), 'bar')} {said}.{worse}"


def table(judged: Sequence[Judged], kinds: tuple[str, str], plan: Plan, rows: Sequence[Row]) -> Table:
    columns = [("Technique", "l")]
    for kind in kinds:
        columns += [(f"{kind.capitalize()} at most", "r"), ("measured", "r"), ("is", "l")]
    found = group(judged, lambda line: line.strategy)
    lines = []
    for name in plan.bars if judged else []:
        own = {line.kind: line for line in found.get(name, [])}
        missing = [q.DASH, q.DASH, _why_missing(name, rows, plan)]
        cells = [_bar_cells(own[kind]) if kind in own else missing for kind in kinds]
        lines.append([f"`{label(name)}`", *(cell for three in cells for cell in three)])
    return Table(columns, lines)


def _bar_cells(line: Judged) -> list[str]:
    word = f"**{line.verdict}**" if line.verdict.startswith(MISSED) else line.verdict
    if line.is_defect and line.to_full:
        word += f", a defect: {q.ratio_interval(line.to_full)} of `{OURS}`"
    measured = q.ratio(line.measured.estimate) if line.measured.n == 0 else q.ratio_interval(line.measured)
    return [q.ratio(line.at_most), measured, word]


def _why_missing(name: str, rows: Sequence[Row], plan: Plan) -> str:
    found = [row for row in rows if row.strategy == name and plan.judged_at.holds(row.record)]
    return why_empty(found[0]) if found else "not measured"


def missed(judged: Sequence[Judged], rows: Sequence[Row], plan: Plan) -> list[str]:
    """One line for each missed bar: what shapes explain, and what we found."""
    records = {row.strategy: row.record for row in rows if plan.judged_at.holds(row.record)}
    return [
        f"`{label(line.strategy)}`, {line.kind}: {q.ratio(line.measured.estimate)} where {q.ratio(line.at_most)} is "
        f"allowed. {_from_shapes(line, records[line.strategy])}"
        f"{plan.bars[line.strategy].why or '**Not explained yet.**'}"
        for line in judged
        if line.verdict.startswith(MISSED)
    ]


def _from_shapes(line: Judged, record: Record) -> str:
    """What part of a step no cache can save, the best ratio it could reach, and what of the step is its own work."""
    predicted, cost = record.predicted, record.cost
    if line.kind != "decode" or predicted is None or cost is None:
        return ""
    weights_s, floor_s = weights_floor_s(predicted), predicted.decode_floor_s
    rest = 1 - weights_s / cost.technique.tpot_s_p50
    return (
        f"Of the {q.data(predicted.decode_bytes_per_step)} that its step reads, "
        f"{q.share(weights_s / floor_s)} are weights, which no cache changes; read at the measured bandwidth they take "
        f"{q.share(weights_s / cost.technique.tpot_s_p50)} of the step, and all else {q.share(max(rest, 0.0))}. "
        f"The step takes {q.ratio(cost.technique.tpot_s_p50 / floor_s)} its floor. "
    )


def weights_floor_s(predicted: Predicted) -> float:
    """The part of a step's floor that reads weights: what the cache holds is read once besides."""
    bandwidth = predicted.decode_bytes_per_step / predicted.decode_floor_s
    return max(predicted.decode_bytes_per_step - predicted.kv_bytes_held, 0) / bandwidth


def floors(rows: Sequence[Row]) -> Table:
    columns = [("Technique", "l"), ("Step reads", "r"), ("of that weights", "r"), ("Its floor", "r"), ("Measured", "r")]
    columns += [("over the floor", "r")]

    def line(row: Row, predicted: Predicted, step_s: float) -> list[str]:
        floor_s = predicted.decode_floor_s
        weights = weights_floor_s(predicted) / floor_s
        return [f"`{label(row.strategy)}`", q.data(predicted.decode_bytes_per_step), q.share(weights),
                q.seconds(floor_s), q.seconds(step_s), q.ratio(step_s / floor_s)]  # fmt: skip

    return Table(
        columns,
        [
            line(row, row.record.predicted, row.record.cost.technique.tpot_s_p50)
            for row in rows
            if row.record.predicted and row.record.cost
        ],
    )
