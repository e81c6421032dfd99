"""Axes by what they measure: lengths, ratios and bytes, with round ticks however wide the range is."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.findings import quantities as q


def length_axis(axes: Axes, lengths: Iterable[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(lengths))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("prompt tokens")


def log_axis(axes: Axes, which: str, values: Iterable[float], write: FuncFormatter) -> None:
    """Logarithmic, with round ticks however narrow or wide the range is."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    positive = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
    low, high = min(positive) / 1.15, max(positive) * 1.15
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_major_locator(FixedLocator(round_ticks(low, high)))
    axis.set_major_formatter(write)
    axis.set_minor_locator(NullLocator())


def round_ticks(low: float, high: float) -> list[float]:
    """Five or so ticks: powers of ten, 1-2-5 steps, or even steps where the range is narrow."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**k for k in decades for step in steps if low <= step * 10.0**k <= high]
        if len(ticks) >= 4:
            return ticks
    even = (float(t) for t in MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high)
    gap, kept = (high / low) ** (1 / 9), list[float]()  # even steps crowd at the upper end of a logarithmic axis
    for tick in even:
        if not kept or tick >= kept[-1] * gap:
            kept.append(tick)
    return kept


def ratio_axis(axes: Axes, which: str, values: Iterable[float]) -> None:
    log_axis(axes, which, values, FuncFormatter(lambda value, _: f"{value:g}{q.TIMES}"))


def bytes_axis(axes: Axes, values: Iterable[float], which: str = "y") -> None:
    """Powers of two, since the units are."""
    found, axis = list(values), axes.yaxis if which == "y" else axes.xaxis
    exponents = range(math.floor(math.log2(min(found))), math.ceil(math.log2(max(found))) + 1)
    stride = math.ceil(len(exponents) / 6)
    axes.set(**{f"{which}scale": "log", f"{which}lim": (2.0 ** exponents[0] / 1.1, 2.0 ** exponents[-1] * 1.1)})
    axis.set_major_locator(FixedLocator([2.0**e for e in exponents if e % stride == 0]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.data(value))))
    axis.set_minor_locator(NullLocator())
