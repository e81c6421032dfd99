"""Figures of the repeated study by decode step: one line for each setting, dashed where it was only described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.findings import quantities as q
from pipeline.findings.evidence import group
from pipeline.record import Arm
from pipeline.report import captions
from pipeline.report.drawing import REFERENCE, Mark, figure, label_ends, mark, style
from pipeline.report.study.repeated import Repeated
from pipeline.report.tokens.step_plots import bytes_above, bytes_by_step, running_median

REACH = 16  # steps on either side of a running median
Drawn = list[tuple[str, str, Figure]]  # file name, alternative text, figure
Panels = dict[int, list["Curve"]]  # by new tokens


@dataclass(frozen=True)
class Curve:
    name: str
    arm: Arm
    look: Mark
    line: str


def drawn(found: Sequence[Repeated]) -> Drawn:
    panels = {n: _curves(members) for n, members in _by_length(found).items()}
    if not panels:
        return []
    with style():
        arms = {f"{one.name}, {one.setting.n_new_tokens} new": one.cost.technique for one in found if one.cost}
        steps = captions.span({name: arm.tpot_s_p50 for name, arm in arms.items()}, q.seconds)
        held = captions.span({name: float(arm.kv_bytes_held[-1]) for name, arm in arms.items()}, q.data)
        peaks = captions.span({name: float(arm.peak_memory_bytes or 0) for name, arm in arms.items()}, q.data)
        figures = [
            ("study_latency", f"time of each decode step: middle {steps}", _latency(panels)),
            ("study_kv_bytes", f"keys and values held after each decode step: at the end {held}", _kv_bytes(panels)),
        ]
        weights = next(one.row.record.predicted.weight_bytes for one in found if one.row and one.row.record.predicted)
        figures.append(("study_memory", f"peak memory by decode step: at most {peaks}", _peak_memory(panels, weights)))
    return figures


def _by_length(found: Sequence[Repeated]) -> dict[int, list[Repeated]]:
    return group([one for one in found if one.cost], lambda one: one.setting.n_new_tokens)


def _curves(members: Sequence[Repeated]) -> list[Curve]:
    costs = [one.cost for one in members if one.cost]
    own = [
        Curve(one.name, one.cost.technique, mark(one.setting.strategy), "-" if one.setting.set == "run" else "--")
        for one in members
        if one.cost
    ]
    return [Curve("full cache", costs[0].full, mark("full"), "-"), *own]


def _figure(panels: Panels, what: str) -> tuple[Figure, list[tuple[Axes, list[Curve]]]]:
    canvas = figure(3.3 * len(panels))
    found = canvas.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, n in zip(found, panels, strict=True):
        axes.set_title(f"{what}, {q.count(n)} new tokens (dashed: described and never run)")
        axes.set_xlabel("decode step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return canvas, list(zip(found, panels.values(), strict=True))


def _latency(panels: Panels) -> Figure:
    canvas, places = _figure(panels, f"time of a step, running median over {2 * REACH + 1}")
    for axes, curves in places:
        medians = [running_median(curve.arm.step_s, REACH) for curve in curves]
        ends = [_line(axes, c, range(1, len(y) + 1), y, width=1.4) for c, y in zip(curves, medians, strict=True)]
        axes.set_ylim(0, 1.1 * max(map(max, medians)))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.seconds(value)) if value else "0"))
        label_ends(canvas, axes, ends)
    return canvas


def _kv_bytes(panels: Panels) -> Figure:
    canvas, places = _figure(panels, "keys and values held")
    for axes, curves in places:
        held = [curve.arm.kv_bytes_held for curve in curves]
        ends = _thinning(axes, curves, [(range(len(y)), y) for y in held])
        bytes_by_step(axes, max(map(max, held)))
        label_ends(canvas, axes, ends)
    return canvas


def _peak_memory(panels: Panels, weights: int) -> Figure:
    """The axis starts at the weights, which every arm needs."""
    canvas, places = _figure(panels, "peak memory")
    for axes, curves in places:
        taken = [curve.arm.peak_memory_by_step for curve in curves]
        ends = _thinning(axes, curves, [(list(peaks), list(peaks.values())) for peaks in taken])
        axes.axhline(weights, color=REFERENCE, linewidth=1, linestyle=":")
        ends.append((axes.get_xlim()[1], weights, "weights alone", REFERENCE))
        bytes_above(axes, weights, max(max(peaks.values()) for peaks in taken))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.data(value))))
        label_ends(canvas, axes, ends)
    return canvas


def _thinning(
    axes: Axes, curves: Sequence[Curve], points: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, float, str, str]]:
    """The later, the thinner: settings of one budget hold the same, and each has to be seen."""
    return [
        _line(axes, curve, x, y, width=1.2 + 4.0 * (len(curves) - number) / len(curves))
        for number, (curve, (x, y)) in enumerate(zip(curves, points, strict=True), start=1)
    ]


def _line(
    axes: Axes, curve: Curve, x: Sequence[int], y: Sequence[float], width: float
) -> tuple[float, float, str, str]:
    """Draws, and returns what is to be labelled."""
    marked: dict[str, Any] = {
        "marker": curve.look.marker,
        "markersize": 5 + width / 2,
        "markevery": max(1, len(y) // 8),
    }
    axes.plot(x, y, color=curve.look.color, linestyle=curve.line, linewidth=width, **marked)
    return float(x[-1]), float(y[-1]), curve.name, curve.look.color
