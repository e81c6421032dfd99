"""Figures of serving from a fixed memory: what fills it, by policy and block size, and goodput by technique."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.findings import quantities as q
from pipeline.report import captions
from pipeline.report.drawing import INK, PALETTE, REFERENCE, figure, style
from pipeline.report.memory import serving
from pipeline.serving.results import OfPolicy, OfTechnique, Served, Serving

FILLINGS = ("tokens", "allocated, unfilled", "free, in pieces too small", "free")
COLORS = (PALETTE[0], PALETTE[5], PALETTE[1], "#EEEEEE")
KINDS = (("keeps every token", PALETTE[0]), ("evicts", PALETTE[1]))
NAMES_WIDTH = 44  # characters of a line of techniques


def drawn(found: Serving) -> list[tuple[str, str, Figure]]:
    """File name, alternative text, figure."""
    running = {serving.title(of.policy): of.served.concurrent_mean for of in found.policies}
    of_policies = f"what fills the memory, by policy and by block size: sequences {captions.span(running, q.count)}"
    goodput = {serving.shown(of).replace("`", ""): _goodput(of) for of in found.techniques}
    of_techniques = (
        f"output tokens of finished requests per step from {q.data(found.room_bytes)}, by technique: "
        f"{captions.span(goodput, q.count)}"
    )
    with style():
        return [("serving", of_policies, _memory(found)), ("serving_techniques", of_techniques, _techniques(found))]


def _memory(found: Serving) -> Figure:
    canvas = figure(1.5 + 0.42 * len(found.policies))
    left, right = canvas.subplots(1, 2, width_ratios=(3, 2))
    _filled(left, found.policies)
    _by_block_size(right, found.block_sizes)
    canvas.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=len(FILLINGS))
    return canvas


def _filled(axes: Axes, policies: Sequence[OfPolicy]) -> None:
    """Stacked to the whole memory; the number of sequences stands where a bar ends."""
    places = range(len(policies))
    starts = [0.0] * len(policies)
    for i, (part, color) in enumerate(zip(FILLINGS, COLORS, strict=True)):
        shares = [_shares(of.served)[i] for of in policies]
        axes.barh(places, shares, 0.62, left=starts, color=color, label=part)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    for place, of in enumerate(policies):
        label = f"{of.served.concurrent_mean:.0f}"
        axes.annotate(label, (1, place), (5, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(places, [serving.title(of.policy) for of in policies])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}{q.GLUE}%"))
    axes.set_xlabel("share of the memory, mean over steps; sequences")


def _shares(served: Served) -> tuple[float, float, float, float]:
    """Of the memory, as `FILLINGS` names them. Pieces that are too small for the next request are free."""
    parts = (served.held, served.unfilled, served.unusable)
    return *parts, max(0.0, 1 - sum(parts))


def _by_block_size(axes: Axes, found: Sequence[OfPolicy]) -> None:
    sizes = [of.block_size or 1 for of in found]
    shares = [of.served.utilisation for of in found]
    axes.plot(sizes, shares, color=PALETTE[0], marker="o")
    for size, share, of in zip(sizes, shares, found, strict=True):
        label = f"{of.served.concurrent_mean:.0f}"
        axes.annotate(label, (size, share), (-1, -14), textcoords="offset points", ha="right", color=INK)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
    axes.set_ylim(min(0.8, min(shares) - 0.1), 1.01)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}{q.GLUE}%"))
    axes.set_ylabel("utilisation")
    axes.set_xlabel("tokens in a block; sequences")


def _techniques(found: Serving) -> Figure:
    """From zero, so that lengths can be compared; the full cache is what the others are multiples of."""
    ranked = sorted(found.techniques, key=_goodput)
    names = [textwrap.fill(serving.shown(of).replace("`", ""), NAMES_WIDTH) for of in ranked]
    reference = _goodput(serving.baseline(found))
    places = _apart(names)
    canvas = figure(0.8 + 0.33 * (places[-1] + 1))
    axes = canvas.subplots()
    axes.barh(places, [_goodput(of) for of in ranked], 0.62, color=[_color(of) for of in ranked])
    for place, of in zip(places, ranked, strict=True):
        label = f"{q.count(_goodput(of))}, {q.ratio(_goodput(of) / reference)}" if reference else "0"
        axes.annotate(label, (_goodput(of), place), (4, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(places, names)
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1.25 * max(map(_goodput, ranked)) or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value)))
    axes.set_xlabel("finished output tokens per step, simulated; quality is not in this figure")
    axes.legend(handles=[Patch(color=color, label=title) for title, color in KINDS], loc="lower right")
    return canvas


def _apart(names: Sequence[str]) -> list[float]:
    """Places at which names of several lines do not meet: a line more takes half as much as a bar does."""
    heights = [1 + 0.5 * name.count("\n") for name in names]
    return [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]


def _goodput(of: OfTechnique) -> float:
    return of.served.finished_tokens_per_step


def _color(of: OfTechnique) -> str:
    if serving.BASELINE in of.techniques:
        return REFERENCE
    return PALETTE[0] if of.size.keeps == 1 else PALETTE[1]
