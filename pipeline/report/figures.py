"""Which figures are drawn: those of one setting (all its techniques) and those of one technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.report import cost_plots, quality_plots, step_plots
from pipeline.report.drawing import style
from pipeline.report.evidence import Row, label, slug
from pipeline.report.means import differs

Names = Mapping[tuple[str, str], str]
Drawn = list[tuple[str, str, Figure]]  # file name, alternative text, figure


def of_setting(rows: Sequence[Row], names: Names) -> Drawn:
    timed, recalled, read = _timed(rows), _recalled(rows), _read(rows)
    drawn: Drawn = []
    with style():
        if timed:
            ratios = cost_plots.ratios(timed, names, cost_plots.TO_REFERENCE)
            drawn.append(("decode_ratio", "decode step as a ratio, by prompt tokens", ratios))
            drawn += _beside_the_ratio(timed, names)
        if recalled:
            drawn.append(("recall", "recall accuracy by share of bytes held", quality_plots.recall(recalled, names)))
        if read:
            drawn.append(("text", "loss on held-out text by share of bytes held", quality_plots.text(read, names)))
    return drawn


def _beside_the_ratio(timed: Sequence[Row], names: Names) -> Drawn:
    drawn: Drawn = []
    if held := cost_plots.kv_bytes(timed, names):
        drawn.append(("kv_bytes", "bytes of keys and values held, by prompt tokens", held))
    if predicted := [row for row in timed if row.record.predicted]:
        floor = cost_plots.ratios(predicted, names, cost_plots.TO_FLOOR)
        drawn.append(("floor", "decode step over its predicted floor", floor))
    drawn.append(("step_latency", "latency of each decode step", step_plots.latency(timed, names)))
    drawn.append(("step_bytes", "bytes held after each decode step", step_plots.kv_bytes(timed, names)))
    if peaks := step_plots.peak_memory(timed, names):
        drawn.append(("step_memory", "peak memory in each decode step", peaks))
    return drawn


def of_technique(rows: Sequence[Row]) -> Drawn:
    """Rows of one strategy in one setting; recall is drawn where it differs from the reference's anywhere."""
    timed, name = _timed(rows), slug(rows[0].strategy)
    recalled = _recalled(rows)
    drawn: Drawn = []
    with style():
        if timed:
            drawn.append((f"{name}-cost", f"cost of {label(rows[0].strategy)}", cost_plots.technique(timed)))
        if any(differs(row) for row in recalled):
            recall = quality_plots.technique(recalled)
            drawn.append((f"{name}-recall", f"recall of {label(rows[0].strategy)} by task", recall))
    return drawn


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.cost]


def _recalled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality and row.record.quality.tasks]


def _read(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality and row.record.quality.text]
