"""What every figure shares: one look, one colour for one technique, labels that do not overlap."""

from __future__ import annotations

import hashlib
import io
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.record import Interval

# Okabe and Ito's colours without yellow, which vanishes on white, and two of Tol's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# A name's hash decides, so that a new technique changes nobody's colour; the salt keeps the published names apart.
SALT = 194265
ARCHITECTURES_SALT = 27278
NOISE = "#BBBBBB"
INK = "#333333"
REFERENCE = "#8C8C8C"
WIDTH_IN = 9.0
ROW_IN = 0.25  # of a figure that has a line for each technique
LABEL_IN = 0.19  # of a name in a column of names
LEGEND_CHARACTERS = 105  # of one line of a legend as wide as a figure
STYLE: Any = {
    "svg.hashsalt": "kv-cache",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Mark:
    color: str
    marker: str
    is_open: bool = False

    @property
    def fill(self) -> str:
        return "white" if self.is_open else self.color


def mark(strategy: str) -> Mark:
    if strategy in {"full", "no_cache"}:
        return Mark("#000000", "o") if strategy == "full" else Mark("#8C564B", "X")
    # What the command line changed stands beside published techniques, whose mark it may happen to have.
    return _hashed(f"{SALT}{strategy}", is_open="+" in strategy)


def architecture_mark(name: str, *, is_reference: bool) -> Mark:
    return Mark("#000000", "o") if is_reference else _hashed(f"{ARCHITECTURES_SALT}{name}")


def _hashed(name: str, *, is_open: bool = False) -> Mark:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return Mark(PALETTE[number % 8], MARKERS[number // 8 % 8], is_open=is_open)


FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "png": {"dpi": 150, "metadata": {"Software": None}},
}


@contextmanager
def style() -> Iterator[None]:
    with styles.context(["default", STYLE]):  # whatever the user's own matplotlibrc says
        yield


def figure(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained", facecolor="white")


def save(drawn: Figure, *suffixes: str) -> dict[str, bytes]:
    """suffix -> file content, the same for the same figure: no dates, no versions. All of `FORMATS` unless told."""
    with style():
        _freeze(drawn)
        return {suffix: _encode(drawn, format=suffix, **FORMATS[suffix]) for suffix in suffixes or FORMATS}


def save_all(figures: Sequence[Figure]) -> list[dict[str, bytes]]:
    """`save` for each, on all processors where processes can be forked: a figure holds functions, which none can send.

    Drawing takes most of the time of a report, and figures have nothing to do with each other.
    """
    n_workers = min(len(figures), os.cpu_count() or 1)
    if n_workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return [save(drawn) for drawn in figures]
    _inherited[:] = figures
    try:
        with multiprocessing.get_context("fork").Pool(n_workers) as pool:
            return pool.map(_save_inherited, range(len(figures)), chunksize=1)
    finally:
        _inherited.clear()


_inherited: list[Figure] = []  # by the processes of `save_all`


def _save_inherited(number: int) -> dict[str, bytes]:
    return save(_inherited[number])


def _freeze(drawn: Figure) -> None:
    """Solve the layout once and round it: the solver's last bits vary from run to run, and an SVG's names hash them."""
    place(drawn)
    drawn.set_layout_engine(None)  # any other, even one that does nothing, would draw everything twice
    for axes in drawn.axes:
        left, bottom, width, height = (round(value, 4) for value in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def place(drawn: Figure) -> None:
    """Give panels the places that they will have, without the time that drawing takes."""
    if engine := drawn.get_layout_engine():
        engine.execute(drawn)


def _encode(drawn: Figure, **options: object) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def error_bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Distances below and above the estimates, as matplotlib wants them; one sample has none."""
    bounded = [i if math.isfinite(i.low) and math.isfinite(i.high) and i.n != 1 else None for i in intervals]
    below = [max(0.0, i.estimate - i.low) if i else 0.0 for i in bounded]
    return [below, [max(0.0, i.high - i.estimate) if i else 0.0 for i in bounded]]


def of_trials(samples: Sequence[float]) -> Interval:
    """The middle one between the extremes: no interval of an estimate, but all that was seen."""
    found = [value for value in samples if math.isfinite(value)] or [math.nan]
    return Interval(estimate=statistics.median(found), low=min(found), high=max(found), n=len(found))


def name_rows(panels: Sequence[Axes], names: Sequence[str]) -> None:
    """A line for each name, the first on top, through all panels, which share their y-axis."""
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in panels:
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)


def across(axes: Axes, value: Interval, height: float, own: Mark, *, is_open: bool = False, size: float = 6) -> None:
    """A mark with its interval lying across, on the line at `height`."""
    ((below,), (above,)) = error_bars([value])
    axes.plot([value.estimate - below, value.estimate + above], [height] * 2, color=own.color, marker="|", markersize=5,
              linewidth=1.4)  # fmt: skip
    axes.plot(value.estimate, height, color=own.color, marker=own.marker, mfc="white" if is_open else own.fill,
              markersize=size)  # fmt: skip


def bound(axes: Axes, value: float, height: float) -> None:
    """What the mark on this line is to be read against."""
    axes.plot(value, height, color=INK, marker="|", markersize=11, markeredgewidth=2)


def dodge(index: int, n: int) -> float:
    """Centred offset, so that equal values stay visible side by side: steps of one, closer where there are many."""
    return (index - (n - 1) / 2) * min(1.0, 7 / n)


def label_ends(drawn: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names (x, y, text, colour) in a column right of the axes, moved apart, each tied to its point."""
    place(drawn)
    box = axes.get_window_extent()
    gap = 13.0 * drawn.dpi / 72 / box.height
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1]) for x, y, _, _ in ends]
    for (x, y, text, color), height in zip(ends, spread_apart(heights, gap), strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def spread_apart(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as needed to be `gap` apart, in their order, inside [0, 1] where they fit.

    Least squares: less their gaps, places must not fall, so that neighbours which would are put at their mean.
    """
    ranked = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []
    for number, i in enumerate(ranked):
        blocks.append([values[i] - number * gap])
        while len(blocks) > 1 and statistics.fmean(blocks[-2]) > statistics.fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    room = 1 - (len(values) - 1) * gap
    low, high = (0.0, room) if room > 0 else (room / 2, room / 2)
    starts = [min(max(statistics.fmean(block), low), high) for block in blocks for _ in block]
    result = [0.0] * len(values)
    for number, i in enumerate(ranked):
        result[i] = starts[number] + number * gap
    return result


def legend(drawn: Figure, entries: Sequence[tuple[str, Mark]]) -> None:
    handles = [
        Line2D([], [], color=m.color, marker=m.marker, mfc=m.fill, linestyle="", label=name) for name, m in entries
    ]
    longest = max(len(name) for name, _ in entries)
    n_columns = max(1, min(5, len(handles), LEGEND_CHARACTERS // (longest + 6)))
    drawn.legend(handles=handles, loc="outside upper left", ncols=n_columns)
