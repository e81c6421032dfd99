"""Figures by decode step: latency, bytes and peak memory, a technique in its colour, its reference in grey."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row
from pipeline.report.drawing import LABEL_IN, REFERENCE, figure, label_ends, mark
from pipeline.report.panels import grid

Names = Mapping[tuple[str, str], str]
End = tuple[float, float, str, str]  # x, y, name, colour


def longest(rows: Sequence[Row]) -> Row:
    """Of the smallest batch, the longest length."""
    return min(rows, key=lambda row: (row.cell.batch, -row.cell.seq_len))


def where(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} tokens, batch {q.count(row.cell.batch)}"


def latency(rows: Sequence[Row], names: Names) -> Figure:
    """A panel for each technique on shared axes, so that they compare; rows are those of one point."""
    said = (
        f"decode step at {where(rows[0])} (bold: running median, faint: every step; grey: {rows[0].setting.reference})"
    )
    drawn, places = grid([(names[row.strategy, row.variant], mark(row.strategy)) for row in rows], said, "")
    for axes, row in zip(places, rows, strict=True):
        latency_panel(axes, row)
        axes.tick_params(labelsize=8)
    highest = _ordinary([middle for row in rows if (middle := _middle(row))])
    places[0].set_ylim(0, 1.4 * highest)
    for axes, row in zip(places, rows, strict=True):
        if (middle := _middle(row)) and middle > 1.4 * highest:
            axes.annotate(f"{q.seconds(middle)}, above", (0.5, 0.85), xycoords="axes fraction", ha="center", fontsize=8)
    return drawn


def _middle(row: Row) -> float | None:
    return row.record.cost.technique.tpot_s_p50 if row.record.cost else None


def _ordinary(values: Sequence[float]) -> float:
    """The largest of those that are no more than twice the middle one: what is far slower would flatten the rest."""
    return max(value for value in values if value <= 2 * statistics.median(values))


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
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.seconds(value)) if value else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def running_median(samples: Sequence[float], reach: int = 4) -> list[float]:
    """Median over each sample and up to `reach` neighbours on either side."""
    return [statistics.median(samples[max(0, i - reach) : i + reach + 1]) for i in range(len(samples))]


def kv_bytes(rows: Sequence[Row], names: Names) -> Figure:
    """All techniques in one panel; rows are those of one point."""
    drawn, axes = _by_step(rows, "keys and values held")
    curves = [(row, dict(enumerate(row.record.cost.technique.kv_bytes_held))) for row in rows if row.record.cost]
    axes.set_xlabel("decode step (0: after the prompt)")
    label_ends(drawn, axes, _curves(axes, curves, names))
    return drawn


def peak_memory(rows: Sequence[Row], names: Names) -> Figure | None:
    """As `kv_bytes`, from the weights on, which all need; a curve ends where no further step was counted. None without
    records of it.
    """
    rows = [row for row in rows if row.record.cost and row.record.cost.technique.step_peak_memory_bytes]
    if not rows:
        return None
    drawn, axes = _by_step(rows, "peak memory")
    curves = [(row, row.record.cost.technique.peak_memory_by_step) for row in rows if row.record.cost]
    ends = _curves(axes, curves, names)
    if predicted := rows[0].record.predicted:
        axes.axhline(predicted.weight_bytes, color=REFERENCE, linewidth=1, linestyle="--")
        ends.append((axes.get_xlim()[1], predicted.weight_bytes, "weights alone", REFERENCE))
        bytes_above(axes, predicted.weight_bytes, max(n for _, taken in curves for n in taken.values()))
    axes.set_xlabel("decode step (0: the prompt)")
    label_ends(drawn, axes, ends)
    return drawn


def _by_step(rows: Sequence[Row], what: str) -> tuple[Figure, Axes]:
    """An empty panel, high enough for the names beside it."""
    drawn = figure(max(3.2, 0.9 + LABEL_IN * (len(rows) + 1)))
    axes = drawn.subplots()
    axes.set_title(f"{what}, {where(rows[0])}")
    return drawn, axes


def _curves(axes: Axes, curves: Sequence[tuple[Row, dict[int, int]]], names: Names) -> list[End]:
    """Draws bytes by step, with a mark where a curve ends, and returns what is to be labelled.

    The later, the thinner: techniques of one budget hold the same, and each has to be seen.
    """
    ends = []
    for n_later, (row, taken) in zip(reversed(range(len(curves))), curves, strict=True):
        own, width = mark(row.strategy), 1.2 + 4.5 * n_later / len(curves)
        shape: dict[str, Any] = {"marker": own.marker, "markersize": 5, "markevery": [-1], "linewidth": width}
        axes.plot(list(taken), list(taken.values()), color=own.color, mfc=own.fill, drawstyle="steps-mid", **shape)
        ends.append((float(max(taken)), float(taken[max(taken)]), names[row.strategy, row.variant], own.color))
    bytes_by_step(axes, max(n_bytes for _, taken in curves for n_bytes in taken.values()))
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


def bytes_above(axes: Axes, weights: int, highest: int) -> None:
    """From the weights to the most that was taken."""
    above = max(highest - weights, 1)
    axes.set_ylim(weights - 0.05 * above, weights + 1.1 * above)
    axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(above / 5))))
