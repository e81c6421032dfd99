"""reports/benchmarks.md: every technique beside the cache that a model uses by default, judged by its bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment

from pipeline import bars
from pipeline.bars import MISSED, NOISE, OURS, REPORTED, Judged, Plan
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group, label
from pipeline.record import Interval, Predicted, Record
from pipeline.report import captions, context, drawing
from pipeline.report.benchmark import plots as benchmark_plots
from pipeline.report.benchmark import points as benchmark_points
from pipeline.report.tables import Table, why_empty
from pipeline.report.tokens import crossing

PAGE = "benchmarks.md"
FIGURES = "figures"
ORDER = (bars.MET, NOISE, MISSED, REPORTED)
LINEAR = 0.05  # of the largest peak, within which a straight line counts as one
Files = dict[str, bytes]
Lengths = list[tuple[int, Interval]]


@dataclass(frozen=True)
class Machine:
    """What the template shows of one machine; `missed` and the other sentences may be empty."""

    name: str
    facts: str
    summary: str
    bars: Table
    sizes: Table
    missed: list[str]
    break_even: Table
    predicted: Table
    crossing: Table
    peaks: Table
    peaks_said: str
    seen: Table
    seen_said: str
    points_said: list[str]
    points: list[tuple[str, Table]]
    pictures: list[tuple[str, str]]  # path without suffix, text


def render(rows: Sequence[Row], environment: Environment, reports_dir: Path, plan: Plan) -> Files:
    """The page and its figures; empty where nothing was benchmarked."""
    files: Files = {}
    machines = [
        _machine(name, members, reports_dir, plan, files)
        for name, members in group(rows, lambda row: row.hardware_id).items()
        if any(is_benchmark(row) for row in members)
    ]
    if not machines:
        return {}
    text = environment.get_template("benchmark/benchmarks.md.j2").render(
        machines=machines, at=where(plan), met=bars.MET, missed=MISSED, noise=NOISE, reported=REPORTED,
        one_trial=bars.ONE_TRIAL.strip(), linear=q.share(LINEAR),
    )  # fmt: skip
    return {PAGE: text.encode(), **files}


def is_benchmark(row: Row) -> bool:
    return row.cell.level == bars.LEVEL


def where(plan: Plan) -> str:
    at = plan.judged_at
    return f"{q.count(at.seq_len)} tokens and batch {q.count(at.batch)} on `{at.model}`"


def summary(rows: Iterable[Row], plan: Plan) -> list[str]:
    """For each machine how many bars are met, and on a GPU what was measured in place of them."""
    machines = group(filter(is_benchmark, rows), lambda row: row.hardware_id)
    return [
        f"Machine `{name}`: {line}"
        for name, members in machines.items()
        for line in _in_short(_judged(members, plan), benchmark_points.said(members))
    ]


def _in_short(judged: Sequence[Judged], said: Sequence[str]) -> list[str]:
    return [_counted(judged), *said] if judged or not said else list(said)


def _machine(name: str, rows: Sequence[Row], reports_dir: Path, plan: Plan, files: Files) -> Machine:
    own = [row for row in rows if is_benchmark(row)]
    against = [row for row in own if row.cell.workload == bars.AGAINST]
    seen = [row for row in own if row.cell.workload == bars.SEEN and row.record.cost]
    judged = _judged(own, plan)
    measured = [row for row in against if plan.judged_at.holds(row.record) and row.record.cost]
    return Machine(
        name=name,
        facts=context.machines(own)[-1],
        summary=_counted(judged) if judged else f"The bars are for {where(plan)}, which was not measured here.",
        bars=_bars(judged, ("decode", "prefill"), plan, against),
        sizes=_bars(judged, ("logical bytes", "held bytes"), plan, against),
        missed=_missed(judged, against, plan),
        break_even=_break_even(rows, plan),
        predicted=_predicted(measured),
        crossing=crossing.of_all(against, reports_dir),
        peaks=(peaks := _peaks(rows, plan))[0],
        peaks_said=peaks[1],
        seen=_seen(seen),
        seen_said=_seen_said(seen),
        points_said=benchmark_points.said(against),
        points=[
            (benchmark_points.title(members[0]), benchmark_points.table(members, reports_dir))
            for members in benchmark_points.of(against).values()
        ],
        pictures=_pictures(name, judged, seen, ratios_to_full(rows, plan), benchmark_points.as_graphs(against), files),
    )


def _judged(rows: Iterable[Row], plan: Plan) -> list[Judged]:
    return bars.judge([row.record for row in rows], plan)


def _counted(judged: Sequence[Judged]) -> str:
    """`of 64 bars 60 met, 1 within noise of the bar, 3 missed; defects: …`"""
    if not judged:
        return "no technique that has bars was measured."
    counts = group(judged, lambda line: line.verdict.removesuffix(bars.ONE_TRIAL))
    said = q.words(f"{q.count(len(counts[verdict]))} {verdict}" for verdict in ORDER if verdict in counts)
    lines = [line for line in judged if line.is_defect]
    found = q.words(dict.fromkeys(f"`{label(line.strategy)}`" for line in lines)) if lines else ""
    worse = f" Missed and worse than our own full cache, a defect: {found}." if found else ""
    return f"of {q.plural(len(judged), 'bar')} {said}.{worse}"


def _bars(judged: Sequence[Judged], kinds: tuple[str, str], plan: Plan, rows: Sequence[Row]) -> Table:
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


def _missed(judged: Sequence[Judged], rows: Sequence[Row], plan: Plan) -> list[str]:
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


def _break_even(rows: Sequence[Row], plan: Plan) -> Table:
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


def _predicted(rows: Sequence[Row]) -> Table:
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


def _peaks(rows: Sequence[Row], plan: Plan) -> tuple[Table, str]:
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
    for name, peaks in sorted(measured.items()):
        if len(peaks) < 3:  # two points always lie on a line
            continue
        slope, off = straightness(peaks)
        bent += [name] if off > LINEAR else []
        lengths = ", ".join(map(q.count, sorted(peaks)))
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


def _seen(rows: Sequence[Row]) -> Table:
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


def _seen_said(rows: Sequence[Row]) -> str:
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


def _pictures(
    machine: str,
    judged: Sequence[Judged],
    seen: Sequence[Row],
    to_full: dict[str, Lengths],
    graphs: Sequence[Row],
    files: Files,
) -> list[tuple[str, str]]:
    timed = [line for line in judged if line.kind == "decode"]
    pictures = []
    with drawing.style():
        if timed:
            steps = captions.span({label(line.strategy): line.measured.estimate for line in timed}, q.ratio)
            missed = sum(line.verdict.startswith(MISSED) for line in timed)
            text = f"decode step over DynamicCache's beside its bar: {steps}; {missed} of {len(timed)} {MISSED}"
            pictures.append(("bars", text, benchmark_plots.decode(timed)))
        if to_full:
            paying = {label(name): length for name, found in to_full.items() if (length := bars.break_even(found))}
            said = captions.span(paying, lambda length: f"{q.count(length)} tokens") if paying else "nowhere"
            text = f"decode step over our full cache's by prompt tokens: {len(paying)} of {len(to_full)} pay, {said}"
            drawn = benchmark_plots.break_even(to_full, {name: label(name) for name in to_full})
            pictures.append(("break_even", text, drawn))
        if seen:
            grown = {f"{label(row.strategy)} after {q.count(row.cell.seq_len)}": row.record.cost.tpot_ratio.estimate
                     for row in seen if row.record.cost}  # fmt: skip
            text = f"decode step by tokens seen before it, over that after the fewest: {captions.span(grown, q.ratio)}"
            pictures.append(("seen", text, benchmark_plots.seen(seen)))
        for members in benchmark_points.of(graphs).values():
            (cell, point) = members[0].cell, benchmark_points.title(members[0])
            took = captions.span({label(row.strategy): row.record.cost.technique.tpot_s_p50 for row in members
                                  if row.record.cost}, q.seconds)  # fmt: skip
            text = f"decode step at {point}, as one graph and launched from Python: as a graph {took}"
            pictures.append((f"steps-{cell.seq_len}-{cell.batch}", text, benchmark_plots.steps(members)))
    shown = []
    for name, text, content in pictures:
        path = f"{FIGURES}/benchmark-{name}-{machine}"
        files.update({f"{path}.{suffix}": data for suffix, data in drawing.save(content).items()})
        shown.append((path, text))
    return shown
