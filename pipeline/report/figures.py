"""Which figures are drawn: those of one setting (all its techniques) and those of one technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.report import cost_plots, quality_plots, step_plots
from pipeline.report.drawing import style
from pipeline.report.evidence import Row

Names = Mapping[tuple[str, str], str]
Drawn = list[tuple[str, str, Figure]]  # file name, alternative text, figure


def of_setting(rows: Sequence[Row], names: Names) -> Drawn:
    timed, recalled, read = _timed(rows), _recalled(rows), _read(rows)
    drawn: Drawn = []
    with style():
        if timed:
            drawn += [
                (
                    "decode_ratio",
                    "decode step as a ratio, by prompt tokens",
                    cost_plots.ratios(timed, names),
                ),
                ("step_latency", "latency of each decode step", step_plots.latency(timed, names)),
                (
                    "step_bytes",
                    "bytes of keys and values held after each decode step",
                    step_plots.kv_bytes(timed, names),
                ),
            ]
            if held := cost_plots.kv_bytes(timed, names):
                drawn.insert(1, ("kv_bytes", "bytes of keys and values held, by prompt tokens", held))
        if predicted := [row for row in timed if row.record.predicted]:
            drawn.append(("floor", "decode step against its predicted floor", cost_plots.floor(predicted, names)))
        if recalled:
            drawn.append(("recall", "recall accuracy by share of bytes held", quality_plots.recall(recalled, names)))
        if read:
            drawn.append(("text", "loss on held-out text by share of bytes held", quality_plots.text(read, names)))
    return drawn


def of_technique(rows: Sequence[Row]) -> Drawn:
    """Rows of one strategy in one setting."""
    timed, recalled, name = _timed(rows), _recalled(rows), rows[0].strategy
    drawn: Drawn = []
    with style():
        if timed:
            drawn.append((f"{name}-cost", f"cost of {name}", cost_plots.technique(timed)))
        if recalled:
            drawn.append((f"{name}-recall", f"recall of {name} by task", quality_plots.technique(recalled)))
    return drawn


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.cost]


def _recalled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality and row.record.quality.tasks]


def _read(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality and row.record.quality.text]
