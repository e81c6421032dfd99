"""Figures of the ablations: quality against the share of bytes held, a curve for each technique over its budgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group, held_share, label
from pipeline.findings.means import N_RESAMPLES, PROTOCOL, SEED, accuracies, tasks_of
from pipeline.intervals import bootstrap
from pipeline.record import Interval, TextQuality
from pipeline.report.ablations.equal_bytes import compared
from pipeline.report.drawing import error_bars, figure, label_ends, legend, mark

Point = tuple[float, Interval]  # share of bytes, value
Measure = Callable[[Row], Point | None]
TICKS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


def recall(rows: Sequence[Row]) -> Figure:
    """A panel for each protocol, the stricter one first."""
    panels = [(f"recall accuracy, {PROTOCOL[name]}", partial(_recall, protocol=name)) for name in reversed(PROTOCOL)]
    drawn = _figure(rows, panels)
    for axes in drawn.axes:
        axes.set_ylim(-0.03, 1.03)
    return drawn


def text(rows: Sequence[Row]) -> Figure:
    """The loss above the full cache's, and how far the predictions are from its."""
    loss, divergence = (partial(_text, of=of) for of in (attrgetter("nll_difference"), _divergence))
    return _figure(
        rows,
        [
            ("loss on held-out text above the full cache's, nats", loss),
            ("KL divergence from the full cache on held-out text, nats", divergence),
        ],
    )


def _figure(rows: Sequence[Row], panels: Sequence[tuple[str, Measure]]) -> Figure:
    """Curves are named where they end; single points, whose bytes are one size, in the legend."""
    techniques = group(compared(rows), lambda row: row.strategy)
    single = [(_short(name), mark(name)) for name, members in techniques.items() if len(members) == 1]
    drawn = figure(3.0 * len(panels) + 0.12 * len(single) + 0.5)
    if single:
        legend(drawn, single)
    drawn.supxlabel(f"KV bytes held, share of {rows[0].setting.reference}'s", fontsize=10)
    for axes, (title, measure) in zip(drawn.subplots(len(panels), 1, sharex=True), panels, strict=True):
        for name, members in techniques.items():
            _curve(axes, name, _points(members, measure))
        axes.set_title(title)
        _share_axis(axes)
    ends = [_ends(techniques, measure) for _, measure in panels]
    for axes, named in zip(drawn.axes, ends, strict=True):
        label_ends(drawn, axes, named)
    return drawn


def _points(rows: Sequence[Row], measure: Measure) -> list[Point]:
    return sorted((point for row in rows if (point := measure(row))), key=lambda point: point[0])


def _curve(axes: Axes, name: str, points: Sequence[Point]) -> None:
    """Intervals are thin: many curves cross, and the line is what is to be followed."""
    own = mark(name)
    shares, values = [share for share, _ in points], [value for _, value in points]
    y = [value.estimate for value in values]
    axes.errorbar(shares, y, error_bars(values), color=own.color, linestyle="", elinewidth=0.7, alpha=0.6)
    axes.plot(shares, y, color=own.color, marker=own.marker, mfc=own.fill, markersize=5, linewidth=1.3)


def _ends(techniques: dict[str, list[Row]], measure: Measure) -> list[tuple[float, float, str, str]]:
    found = []
    for name, members in techniques.items():
        points = _points(members, measure)
        if len(members) > 1 and points:
            share, value = points[-1]
            found.append((share, value.estimate, _short(name), mark(name).color))
    return found


def _share_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlim(right=1.1)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{q.GLUE}%"))
    axes.xaxis.set_minor_locator(NullLocator())


def _short(strategy: str) -> str:
    """`snapkv, encoding=kivi, encoding.bits=2` -> `snapkv, encoding=kivi, bits=2`"""
    return re.sub(r"\w+\.(\w+=)", r"\1", label(strategy))


def _recall(row: Row, protocol: str) -> Point | None:
    tasks = tasks_of(row, protocol)
    share = held_share(tasks)
    return (share, bootstrap(accuracies(tasks), N_RESAMPLES, SEED)) if share else None


def _divergence(text: TextQuality) -> Interval:
    return Interval(estimate=text.kl_to_full, low=text.kl_to_full, high=text.kl_to_full, n=0)


def _text(row: Row, of: Callable[[TextQuality], Interval]) -> Point | None:
    text = row.record.quality.text if row.record.quality else None
    share = held_share([text]) if text else None
    return (share, of(text)) if text and share else None
