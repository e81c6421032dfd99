"""Figures by decode step: latency, bytes and peak memory, a technique in its colour, its reference in grey."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from pipeline.report import quantities as q
from pipeline.report.drawing import REFERENCE, figure, label_ends, mark
from pipeline.report.evidence import Row, group

Names = Mapping[tuple[str, str], str]
End = tuple[float, float, str, str]  # x, y, name, colour


def longest(rows: Sequence[Row]) -> Row:
    """Of the smallest batch, the longest length."""
    return min(rows, key=lambda row: (row.cell.batch, -row.cell.seq_len))


def where(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} tokens, batch {q.count(row.cell.batch)}"


def latency(rows: Sequence[Row], names: Names) -> Figure:
    shown = [longest(members) for members in group(rows, lambda row: (row.strategy, row.variant)).values()]
    n_columns = min(3, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    drawn = figure(2.3 * n_rows + 0.5)
    panels = list(drawn.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, row in zip(panels, shown, strict=False):
        latency_panel(axes, row)
        axes.set_title(names[row.strategy, row.variant], color=mark(row.strategy).color)
        axes.set_xlabel(where(row), fontsize=8, labelpad=1)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    reference = rows[0].setting.reference
    drawn.supxlabel(f"decode step (bold: running median, faint: every step; grey: {reference})", fontsize=10)
    drawn.supylabel("time of a decode step", fontsize=10)
    return drawn


def latency_panel(axes: Axes, row: Row) -> None:
    """Every step as it was measured, faint, and the running median over it."""
    if row.record.cost is None:
        return
    arms = ((row.record.cost.full.step_s, REFERENCE), (row.record.cost.technique.step_s, mark(row.strategy).color))
    for samples, color in arms:
        n_steps = range(1, len(samples) + 1)
        axes.plot(n_steps, samples, color=color, linewidth=0.6, alpha=0.45)
        axes.plot(n_steps, running_median(samples), color=color, linewidth=1.5)
    # A rare spike may leave the panel: it would flatten everything else, and the tables have the p90.
    ordinary = max(max(running_median(samples)) for samples, _ in arms)
    axes.set_ylim(0, 1.05 * min(2 * ordinary, max(max(samples) for samples, _ in arms)))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.seconds(value)) if value else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def running_median(samples: Sequence[float], reach: int = 4) -> list[float]:
    """Median over each sample and up to `reach` neighbours on either side."""
    return [statistics.median(samples[max(0, i - reach) : i + reach + 1]) for i in range(len(samples))]


def kv_bytes(rows: Sequence[Row], names: Names) -> Figure:
    """All techniques in one panel, at the longest length of the smallest batch."""
    drawn, axes, shown = _by_step(rows, "keys and values held")
    curves = [(row, row.record.cost.technique.kv_bytes_held) for row in shown if row.record.cost]
    axes.set_xlabel("decode step (0: after the prompt)")
    label_ends(drawn, axes, _curves(axes, curves, names))
    return drawn


def peak_memory(rows: Sequence[Row], names: Names) -> Figure | None:
    """As `kv_bytes`, with the weights below; a curve ends where no further step was counted. None without records of
    it.
    """
    rows = [row for row in rows if row.record.cost and row.record.cost.technique.step_peak_memory_bytes]
    if not rows:
        return None
    drawn, axes, shown = _by_step(rows, "peak memory")
    curves = [(row, row.record.cost.technique.step_peak_memory_bytes) for row in shown if row.record.cost]
    ends = _curves(axes, curves, names)
    if predicted := shown[0].record.predicted:
        axes.axhline(predicted.weight_bytes, color=REFERENCE, linewidth=1, linestyle="--")
        ends.append((axes.get_xlim()[1], predicted.weight_bytes, "weights alone", REFERENCE))
    axes.set_xlabel("decode step (0: the prompt)")
    label_ends(drawn, axes, ends)
    return drawn


def _by_step(rows: Sequence[Row], what: str) -> tuple[Figure, Axes, list[Row]]:
    """An empty panel, and the rows to draw in it."""
    point = longest(rows).point
    shown = [row for row in rows if row.point == point]
    drawn = figure(3.2)
    axes = drawn.subplots()
    axes.set_title(f"{what}, {where(shown[0])}")
    return drawn, axes, shown


def _curves(axes: Axes, curves: Sequence[tuple[Row, Sequence[int]]], names: Names) -> list[End]:
    """Draws, with a mark where a curve ends, and returns what is to be labelled. The later, the thinner: techniques of
    one budget hold the same, and each has to be seen.
    """
    ends = []
    for n_later, (row, taken) in zip(reversed(range(len(curves))), curves, strict=True):
        own, width = mark(row.strategy), 1.2 + 4.5 * n_later / len(curves)
        drawn = axes.plot(taken, color=own.color, marker=own.marker, markersize=5, markevery=[-1], linewidth=width)
        drawn[0].set_drawstyle("steps-mid")
        ends.append((len(taken) - 1.0, float(taken[-1]), names[row.strategy, row.variant], own.color))
    bytes_by_step(axes, max(n_bytes for _, taken in curves for n_bytes in taken))
    return ends


def bytes_panel(axes: Axes, row: Row) -> None:
    if row.record.cost is None:
        return
    own, full = row.record.cost.technique.kv_bytes_held, row.record.cost.full.kv_bytes_held
    axes.plot(full, color=REFERENCE, linewidth=2.4)
    axes.plot(own, color=mark(row.strategy).color, linewidth=1.4)
    bytes_by_step(axes, max(*own, *full))


def bytes_by_step(axes: Axes, highest: float) -> None:
    """From nothing to the most that is held; ticks are powers of two apart, since the units are."""
    highest = max(highest, 1.0)
    axes.set_ylim(-0.04 * highest, 1.1 * highest)
    axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(highest / 4))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.data(value))))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
