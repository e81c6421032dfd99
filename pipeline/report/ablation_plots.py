"""Figures of the ablations: quality against the share of bytes held, a curve for each technique over its budgets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.record import TextQuality
from pipeline.report import quantities as q
from pipeline.report.drawing import figure, legend, mark
from pipeline.report.equal_bytes import compared
from pipeline.report.evidence import Row, group, held_share, label
from pipeline.report.means import accuracies, tasks_of
from pipeline.report.tables import PROTOCOL

Point = tuple[float, float]  # share of bytes, value
TEXT: Mapping[Callable[[TextQuality], float], str] = {
    lambda text: text.nll_difference.estimate: "text: loss above the full cache's, nats",
    lambda text: text.kl_to_full: "text: KL divergence from the full cache, nats",
}
TICKS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


def quality(rows: Sequence[Row]) -> Figure:
    """Recall under both protocols, and of text the loss and the divergence from the full cache."""
    rows = compared(rows)
    drawn = figure(7.4)
    panels = drawn.subplots(2, 2, sharex=True)
    for axes, (protocol, title) in zip(panels[0], PROTOCOL.items(), strict=True):
        _panel(axes, rows, partial(_recall, protocol=protocol), f"recall accuracy, {title}")
        axes.set_ylim(-0.03, 1.03)
    for axes, (of, title) in zip(panels[1], TEXT.items(), strict=True):
        _panel(axes, rows, partial(_text, of=of), title)
    drawn.supxlabel(f"KV bytes held, share of {rows[0].setting.reference}'s", fontsize=10)
    strategies = dict.fromkeys(row.strategy for row in rows)
    legend(drawn, [(label(name), mark(name)) for name in strategies])
    return drawn


def _panel(axes: Axes, rows: Sequence[Row], measure: Callable[[Row], Point | None], title: str) -> None:
    for strategy, members in group(rows, lambda row: row.strategy).items():
        points = sorted(point for row in members if (point := measure(row)))
        own = mark(strategy)
        axes.plot(*zip(*points, strict=True), color=own.color, marker=own.marker, markersize=5, linewidth=1.3)
    axes.set_title(title)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{q.GLUE}%"))
    axes.xaxis.set_minor_locator(NullLocator())


def _recall(row: Row, protocol: str) -> Point | None:
    tasks = tasks_of(row, protocol)
    share = held_share(tasks)
    return (share, statistics.fmean(accuracies(tasks))) if share else None


def _text(row: Row, of: Callable[[TextQuality], float]) -> Point | None:
    text = row.record.quality.text if row.record.quality else None
    share = held_share([text]) if text else None
    return (share, of(text)) if text and share else None
