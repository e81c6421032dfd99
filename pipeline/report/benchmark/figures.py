"""Which figures the page of the benchmark has for one machine, each with what it shows in words."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline import bars
from pipeline.bars import MISSED, Judged
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, label
from pipeline.report import captions, drawing
from pipeline.report.benchmark import plots as benchmark_plots
from pipeline.report.benchmark import points
from pipeline.report.benchmark.lengths import Lengths

Drawn = list[tuple[str, str, Figure]]  # file name, alternative text, figure


def drawn(judged: Sequence[Judged], seen: Sequence[Row], to_full: dict[str, Lengths], against: Sequence[Row]) -> Drawn:
    timed = [line for line in judged if line.kind == "decode"]
    pictures: Drawn = []
    with drawing.style():
        if timed:
            steps = captions.span({label(line.strategy): line.measured.estimate for line in timed}, q.ratio)
            missed = sum(line.verdict.startswith(MISSED) for line in timed)
            text = f"decode step over DynamicCache's beside its bar: {steps}; {missed} of {len(timed)} {MISSED}"
            pictures.append(("benchmark-bars", text, benchmark_plots.decode(timed)))
        if to_full:
            paying = {label(name): length for name, found in to_full.items() if (length := bars.break_even(found))}
            said = captions.span(paying, lambda length: f"{q.count(length)} tokens") if paying else "nowhere"
            text = f"decode step over our full cache's by prompt tokens: {len(paying)} of {len(to_full)} pay, {said}"
            names = {name: label(name) for name in to_full}
            pictures.append(("benchmark-break_even", text, benchmark_plots.break_even(to_full, names)))
        if seen:
            grown = {f"{label(row.strategy)} after {q.count(row.cell.seq_len)}": row.record.cost.tpot_ratio.estimate
                     for row in seen if row.record.cost}  # fmt: skip
            text = f"decode step by tokens seen before it, over that after the fewest: {captions.span(grown, q.ratio)}"
            pictures.append(("benchmark-seen", text, benchmark_plots.seen(seen)))
        for members in points.of(points.as_graphs(against)).values():
            (cell, point) = members[0].cell, points.title(members[0])
            took = captions.span({label(row.strategy): row.record.cost.technique.tpot_s_p50 for row in members
                                  if row.record.cost}, q.seconds)  # fmt: skip
            text = f"decode step at {point}, as one graph and launched from Python: as a graph {took}"
            pictures.append((f"benchmark-steps-{cell.seq_len}-{cell.batch}", text, benchmark_plots.steps(members)))
    return pictures
