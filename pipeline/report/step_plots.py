"""Figures by decode step: latency and bytes, a technique in its colour over the full cache in black."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from pipeline.report import quantities as q
from pipeline.report.drawing import INK, figure, mark
from pipeline.report.evidence import Row, group

Names = Mapping[tuple[str, str], str]


def longest(rows: Sequence[Row]) -> Row:
    """Of the smallest batch, the longest length."""
    return min(rows, key=lambda row: (row.cell.batch, -row.cell.seq_len))


def where(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} tokens {q.TIMES} {q.count(row.cell.batch)}"


def latency(rows: Sequence[Row], names: Names) -> Figure:
    return _multiples(rows, names, latency_panel, "time of a decode step")


def kv_bytes(rows: Sequence[Row], names: Names) -> Figure:
    return _multiples(rows, names, bytes_panel, "KV bytes held")


def _multiples(rows: Sequence[Row], names: Names, panel: Callable[[Axes, Row], None], what: str) -> Figure:
    shown = [longest(members) for members in group(rows, lambda row: (row.strategy, row.variant)).values()]
    n_columns = min(3, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    drawn = figure(2.3 * n_rows + 0.4)
    panels = list(drawn.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, row in zip(panels, shown, strict=False):
        panel(axes, row)
        axes.set_title(names[row.strategy, row.variant], color=mark(row.strategy).color)
        axes.set_xlabel(where(row), fontsize=8, labelpad=1)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    drawn.supxlabel(f"decode step (black: {rows[0].setting.reference} in the same process)", fontsize=10)
    drawn.supylabel(what, fontsize=10)
    return drawn


def latency_panel(axes: Axes, row: Row) -> None:
    """Every step as it was measured, faint, and the running median over it."""
    if row.record.cost is None:
        return
    arms = ((row.record.cost.full.step_s, INK), (row.record.cost.technique.step_s, mark(row.strategy).color))
    for samples, color in arms:
        n_steps = range(1, len(samples) + 1)
        axes.plot(n_steps, samples, color=color, linewidth=0.6, alpha=0.35)
        axes.plot(n_steps, running_median(samples), color=color, linewidth=1.5)
    # A rare spike may leave the panel: it would flatten everything else, and the tables have the p90.
    ordinary = max(max(running_median(samples)) for samples, _ in arms)
    axes.set_ylim(0, 1.05 * min(2 * ordinary, max(max(samples) for samples, _ in arms)))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.seconds(value) if value else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def running_median(samples: Sequence[float], reach: int = 4) -> list[float]:
    """Median over each sample and up to `reach` neighbours on either side."""
    return [statistics.median(samples[max(0, i - reach) : i + reach + 1]) for i in range(len(samples))]


def bytes_panel(axes: Axes, row: Row) -> None:
    if row.record.cost is None:
        return
    own, full = row.record.cost.technique.kv_bytes_held, row.record.cost.full.kv_bytes_held
    axes.plot(full, color=INK, linewidth=1.0)
    axes.plot(own, color=mark(row.strategy).color, linewidth=1.8)
    highest = max(*own, *full, 1)
    axes.set_ylim(-0.04 * highest, 1.1 * highest)
    axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(highest / 4))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.data(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
