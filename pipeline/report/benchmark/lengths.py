"""Techniques over the lengths that were measured: where one pays, how its peak memory and its step grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline import bars
from pipeline.bars import OURS, Plan
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group, label
from pipeline.record import Interval
from pipeline.report.benchmark.points import is_benchmark
from pipeline.report.tables import Table

LINEAR = 0.05  # of the largest peak, within which a straight line counts as one
Lengths = list[tuple[int, Interval]]


def break_even(rows: Sequence[Row], plan: Plan) -> Table:
    """The length from which a technique's decode step stays below our full cache's, over all that was measured."""
    columns = [("Technique", "l"), ("Pays from", "l"), ("Lengths measured", "l"), ("Decode step at the longest", "r")]
    lines = []
    for name, lengths in ratios_to_full(rows, plan).items():
        paying = bars.break_even(lengths)
        said = "not within the measured lengths" if paying is None else f"{q.count(paying)} tokens"
        measured = ", ".join(q.count(n) for n in sorted({n for n, _ in lengths}))
        lines.append([f"`{label(name)}`", said, measured, q.ratio_interval(max(lengths, key=lambda item: item[0])[1])])
    return Table(columns, lines)


def ratios_to_full(rows: Sequence[Row], plan: Plan) -> dict[str, Lengths]:
    """Technique -> (tokens, decode step over our full cache's), of both levels, on the model and batch of the bars."""
    at = plan.judged_at
    timed = [row for row in rows if row.record.cost and (row.cell.model, row.cell.batch) == (at.model, at.batch)]
    found: dict[str, Lengths] = {}
    full = {row.cell.seq_len: row.record for row in timed if is_benchmark(row) and row.strategy == OURS}
    for row in timed:
        if row.cell.workload == bars.SEEN or row.strategy == OURS:
            continue
        cost = row.record.cost
        direct = cost.tpot_ratio if cost and row.setting.baseline == OURS else None
        if ratio := bars.to_full(row.record, full.get(row.cell.seq_len)) if is_benchmark(row) else direct:
            found.setdefault(row.strategy, []).append((row.cell.seq_len, ratio))
    return dict(sorted(found.items()))


def peaks(rows: Sequence[Row], plan: Plan) -> tuple[Table, str]:
    """Peak memory while a prompt is read, and how far from a straight line it lies over the lengths."""
    at = plan.judged_at
    columns = [("Technique", "l"), ("Lengths", "l"), ("For each token", "r"), ("Furthest from a line", "r")]
    measured: dict[str, dict[int, int]] = {}
    for row in rows:
        cost = row.record.cost
        here = (row.cell.model, row.cell.batch) == (at.model, at.batch) and row.cell.workload != bars.SEEN
        if cost and here and cost.technique.step_peak_memory_bytes:
            measured.setdefault(row.strategy, {})[row.cell.seq_len] = cost.technique.step_peak_memory_bytes[0]
    lines, bent = [], []
    for name, found in sorted(measured.items()):
        if len(found) < 3:  # two points always lie on a line
            continue
        slope, off = straightness(found)
        bent += [name] if off > LINEAR else []
        lengths = ", ".join(map(q.count, sorted(found)))
        lines.append([f"`{label(name)}`", lengths, q.data(max(slope, 0.0)), q.share(off)])
    if not lines:
        return Table(columns, []), "No technique was measured at three lengths or more."
    names = q.words(f"`{label(name)}`" for name in bent) if bent else ""
    said = f"not linear: {names}" if bent else "linear in the length of the prompt for every technique"
    return Table(columns, lines), f"Peak memory in prefill is {said}."


def straightness(peaks: dict[int, int]) -> tuple[float, float]:
    """Bytes per token of the least-squares line, and the largest distance from it as a share of the largest peak."""
    lengths, values = (np.array(found, dtype=float) for found in zip(*sorted(peaks.items()), strict=True))
    slope, start = np.polyfit(lengths, values, 1)
    return float(slope), float(np.abs(values - start - slope * lengths).max() / values.max())


def seen(rows: Sequence[Row]) -> Table:
    lengths = sorted({row.cell.seq_len for row in rows})
    columns = [("Technique", "l"), ("Budget", "r"), *((f"{q.count(n)} seen", "r") for n in lengths)]
    lines = []
    for name, members in group(rows, lambda row: row.strategy).items():
        cells = {row.cell.seq_len: _step_and_ratio(row) for row in members}
        budget = members[0].cell.kv_budget
        head = [f"`{label(name)}`", q.DASH if budget is None else q.count(budget)]
        lines.append([*head, *(cells.get(n, q.DASH) for n in lengths)])
    return Table(columns, lines)


def _step_and_ratio(row: Row) -> str:
    cost = row.record.cost
    assert cost is not None
    return f"{q.seconds(cost.technique.tpot_s_p50)}, {q.ratio_interval(cost.tpot_ratio)}"


def seen_said(rows: Sequence[Row]) -> str:
    """Which techniques grow: their step after the most tokens against that after the fewest, outside the noise."""
    last = [
        max(members, key=lambda row: row.cell.seq_len) for members in group(rows, lambda row: row.strategy).values()
    ]
    if not last:
        return "no technique that evicts in every step was measured"
    said = group(last, lambda row: _growth(row))
    return "; ".join(f"{word}: {q.words(f'`{label(row.strategy)}`' for row in found)}" for word, found in said.items())


def _growth(row: Row) -> str:
    cost = row.record.cost
    assert cost is not None
    word = verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio)
    where = f"after {q.count(row.cell.seq_len)} tokens"
    return {verdicts.SLOWER: f"a step grows {where}", verdicts.NO_DIFFERENCE: f"no growth found {where}"}.get(
        word, f"{word} {where}"
    )
