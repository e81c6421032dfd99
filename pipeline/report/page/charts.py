"""Interactive charts as plotly.js draws them: traces in the colours of the other figures, their intervals, and axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.findings import quantities as q
from pipeline.record import Interval
from pipeline.report.drawing import INK, NOISE, Mark, error_bars

Trace = dict[str, Any]  # as plotly.js reads it
Axis = dict[str, Any]
Values = Sequence[float] | Sequence[int] | Sequence[str]
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "<": "triangle-left",
}
DIGITS = 6  # significant, of a coordinate: finer than any screen
HIDDEN = "legendonly"  # switched off until its name is clicked
MIB = 2**20
TICKS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class View:
    """One pair of axes; of several, a reader chooses one by its name."""

    name: str
    traces: list[Trace]
    x: Axis
    y: Axis


@dataclass(frozen=True)
class Chart:
    """What stands in the page where the report has the figure of the same name; the first view is shown first."""

    views: list[View]

    @property
    def json(self) -> dict[str, Any]:
        """Ready for JSON: what is not finite has no place on an axis and is left out of it."""
        return {"views": [_plain(asdict(view)) for view in self.views if view.traces]}


def points(
    name: str,
    look: Mark,
    x: Values,
    y: Values,
    hover: Sequence[str],
    intervals: Sequence[Interval] = (),
    sideways: Sequence[Interval] = (),
    **more: Any,
) -> Trace:
    """A mark for each value, joined by a line; `more` are further properties of the trace.

    `intervals` are those of `y`, or of `x` where `y` are names; `sideways` are those of `x` beside them.
    """
    symbol = SYMBOLS[look.marker] + ("-open" if look.is_open else "")
    trace: Trace = {
        "name": name,
        "x": list(x),
        "y": list(y),
        "hovertext": list(hover),
        "mode": "lines+markers",
        "line": {"color": look.color, "width": 1.6},
        "marker": {"color": look.color, "symbol": symbol, "size": 8},
    }
    along = "x" if all(isinstance(value, str) for value in y) else "y"
    for axis, found in ((along, intervals), ("x", sideways)):
        if any(i.n > 1 for i in found):
            trace[f"error_{axis}"] = _error(found, look.color)
    return trace | more


def _error(intervals: Sequence[Interval], color: str) -> dict[str, Any]:
    below, above = error_bars(intervals)
    shape = {"type": "data", "symmetric": False, "color": color, "thickness": 1.2, "width": 3}
    return shape | {"array": above, "arrayminus": below}


def curve(name: str, color: str, y: Sequence[float], hover: Sequence[str], first: int = 1, **more: Any) -> Trace:
    """Values of consecutive steps, numbered from `first`."""
    trace: Trace = {"name": name, "y": list(y), "x0": first, "dx": 1, "hovertext": list(hover), "mode": "lines"}
    return trace | {"line": {"color": color, "width": 1.8}} | more


def band(name: str, x: Values, low: Sequence[float], high: Sequence[float]) -> Trace:
    """What lies between two curves means nothing."""
    return {
        "name": name,
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": NOISE,
        "opacity": 0.5,
        "mode": "lines",
        "line": {"color": NOISE, "width": 0},
        "hoverinfo": "skip",
    }


def spans(name: str, lines: Sequence[str], found: Sequence[Interval]) -> Trace:
    """Behind each line of `names`, from where to where a value means nothing."""
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": list(lines),
        "width": 0.8,
        "hoverinfo": "skip",
    }
    ends = {"base": [span.low for span in found], "x": [span.high - span.low for span in found]}
    return trace | ends | {"marker": {"color": NOISE}, "opacity": 0.5}


def bars(name: str, color: str, x: Sequence[str], values: Sequence[Interval], hover: Sequence[str]) -> Trace:
    trace: Trace = {"type": "bar", "name": name, "x": list(x), "y": [value.estimate for value in values]}
    trace |= {"hovertext": list(hover), "marker": {"color": color}}
    return trace | {"error_y": _error(values, INK)} if any(value.n > 1 for value in values) else trace


def plain(title: str, **more: Any) -> Axis:
    return {"title": title} | more


def lengths(title: str, found: Iterable[int]) -> Axis:
    """Logarithmic, with the measured lengths as ticks."""
    ticks = sorted(set(found))
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [q.count(n) for n in ticks]}


def ratios(title: str) -> Axis:
    return {"title": title, "type": "log", "ticksuffix": q.TIMES}


def shares(title: str) -> Axis:
    return {"title": title, "tickformat": ".0%"}


def budgets(title: str) -> Axis:
    """Shares that are a few times apart."""
    return {"title": title, "type": "log", "tickvals": TICKS, "tickformat": "~%"}


def seconds(title: str) -> Axis:
    return {"title": title, "ticksuffix": "s", "tickformat": "~s", "rangemode": "tozero"}


def bytes_held(title: str, found: Iterable[float]) -> Axis:
    """Logarithmic; ticks are powers of two, since the units are, and go on beyond what is there."""
    positive = [n for n in found if n > 0] or [1.0]
    first, last = math.floor(math.log2(min(positive))) - 2, math.ceil(math.log2(max(positive))) + 2
    ticks = [2.0**e for e in range(first, last + 1, math.ceil((last - first) / 12))]
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": [q.tick(q.data(n)) for n in ticks]}


def mebibytes(title: str) -> Axis:
    return {"title": title, "ticksuffix": f"{q.GLUE}MiB"}


def names(found: Sequence[str]) -> Axis:
    """A line for each, the first on top."""
    order = {"categoryorder": "array", "categoryarray": list(dict.fromkeys(found)), "autorange": "reversed"}
    return {"type": "category", "automargin": True} | order


def in_mebibytes(found: Sequence[float]) -> list[float]:
    return [n / MIB for n in found]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return _number(value)
    return value


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
