"""Figures of the model level: bytes by length, quality by bytes, recall by distance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from pipeline.findings import quantities as q
from pipeline.findings.evidence import group
from pipeline.findings.means import shifted
from pipeline.record import Interval
from pipeline.report import captions
from pipeline.report.drawing import REFERENCE, dodge, error_bars, figure, label_ends, legend, style
from pipeline.report.models import reach, training_plots
from pipeline.report.models.architectures import Architecture, at, lengths, longest_trained, recall, text
from pipeline.report.models.panels import look, panels
from pipeline.report.models.training_plots import Drawn
from pipeline.report.scales import bytes_axis, length_axis

Point = tuple[Architecture, float, Interval]  # bytes held, quality
NEARLY = 3  # steps within a factor of two, in which bytes count as the same
OCTAVES = 0.13  # by which these are moved apart
MARGIN = 1.3
FILLS = ("", "white")  # of markers; empty: the colour of the architecture


def drawn(found: Sequence[Architecture]) -> Drawn:
    pictures: Drawn = []
    with style():
        if len(lengths(found)) > 1:
            longest = max(lengths(found))
            held = {one.name: float(one.held[longest]) for one in found if longest in one.held}
            text = f"bytes held by prompt tokens; at {q.count(longest)} tokens {captions.span(held, q.data)}"
            pictures.append(("model_bytes", text, _held(found)))
        if (recalled := _recalled(found)) and (read := _read(found)):
            recalls, losses = ({one.name: value.estimate for one, _, value in points} for points in (recalled, read))
            said = f"recall {captions.span(recalls, q.decimal)}; loss on text {captions.span(losses, q.decimal)} nats"
            pictures.append(("model_quality", f"quality by bytes held: {said}", _quality(recalled, read)))
        if bent := reach.windowed(found):
            pictures.append(("model_reach", f"recall by distance of the needle, {_far(bent)}", _reach(found, bent)))
        pictures += training_plots.drawn(found)
    return pictures


def _held(found: Sequence[Architecture]) -> Figure:
    """Log-log: what grows with every token rises, a constant state is level. Where several hold the same, the later is
    the thinner, so that each is seen.
    """
    canvas = figure(4.8)
    axes = canvas.subplots()
    shown = [one for one in found if one.held and min(one.held.values()) > 0]
    ends = []
    for same in group(shown, lambda one: tuple(one.held.items())).values():
        for number, one in enumerate(same, start=1):
            own, (x, y) = look(one), zip(*one.held.items(), strict=True)
            width = 1.3 + 1.5 * (len(same) - number)
            axes.plot(x, y, color=own.color, marker=own.marker, markersize=4 + width, linewidth=width)
            ends.append((x[-1], y[-1], one.name, own.color))
    length_axis(axes, lengths(shown))
    bytes_axis(axes, [n for one in shown for n in one.held.values()])
    axes.set_title("keys, values and states of one sequence after the last step")
    label_ends(canvas, axes, ends)
    return canvas


def _far(bent: Sequence[Architecture]) -> str:
    """What is recalled of one fact at the nearest and at the farthest distances."""
    width = reach.step(bent) or 1
    bins = {one.name: reach.by_distance(one, next(iter(reach.TASKS.values())), width) for one in bent}
    near, far = ({name: own[end].accuracy.estimate for name, own in bins.items() if own} for end in (0, -1))
    return f"one fact: nearest {captions.span(near, q.decimal)}, farthest {captions.span(far, q.decimal)}"


def _recalled(found: Sequence[Architecture]) -> list[Point]:
    seq_len = longest_trained(found)
    return [
        (one, statistics.fmean(task.kv_bytes_held for task in own.tasks), own.accuracy)
        for one in found
        if (own := recall(at(seq_len, one.recalled)))
    ]


def _read(found: Sequence[Architecture]) -> list[Point]:
    """The interval is that of the difference from the reference."""
    seq_len = longest_trained(found)
    read = [(one, own) for one in found if (own := text(at(seq_len, one.recalled)))]
    return [(one, own.kv_bytes_held, shifted(own.nll_difference, own.nll_full)) for one, own in read]


def _quality(recalled: Sequence[Point], read: Sequence[Point]) -> Figure:
    canvas = figure(4.4)
    left, right = canvas.subplots(1, 2)
    _scatter(left, recalled)
    _scatter(right, read)
    seq_len = q.count(longest_trained([one for one, _, _ in recalled]) or 0)
    left.set_title(f"recall at {seq_len} tokens, mean over tasks")
    right.set_title(f"loss on text at {seq_len} tokens, nats")
    canvas.supxlabel("bytes held of one sequence (side by side: nearly the same)", fontsize=10)
    legend(canvas, [(one.name, look(one)) for one, _, _ in recalled])
    return canvas


def _scatter(axes: Axes, points: Sequence[Point]) -> None:
    """Those that hold nearly the same stand side by side."""
    for same in group(points, lambda point: round(NEARLY * math.log2(max(point[1], 1)))).values():
        for number, (one, held, value) in enumerate(same):
            own, x = look(one), held * 2 ** (OCTAVES * dodge(number, len(same)))
            axes.errorbar(x, value.estimate, error_bars([value]), color=own.color, marker=own.marker, ms=6, capsize=2)
    bytes_axis(axes, [x for _, x, _ in points], "x")
    low, high = axes.get_xlim()
    axes.set_xlim(low / MARGIN, high * MARGIN)


def _reach(found: Sequence[Architecture], bent: Sequence[Architecture]) -> Figure:
    width = reach.step(found) or 1
    filled, is_open = reach.TASKS
    said = f"tokens from the needle to the end of the question (filled: {filled}; open: {is_open}; grey: the reference)"
    canvas, places = panels(bent, said, "recall")
    for axes, one in places:
        for tasks, shift, fill, line in zip(reach.TASKS.values(), (-0.12, 0.12), FILLS, ("-", "--"), strict=True):
            own, bins = look(one), reach.by_distance(one, tasks, width)
            x, y = [b.nearest // width + shift for b in bins], [b.accuracy for b in bins]
            axes.plot(x, [b.reference.estimate for b in bins], color=REFERENCE, linewidth=1.0)
            shape: dict[str, Any] = {"marker": own.marker, "ms": 5, "capsize": 2, "lw": 1.2, "ls": line}
            axes.errorbar(x, [i.estimate for i in y], error_bars(y), color=own.color, mfc=fill or own.color, **shape)
        axes.set_ylim(-0.05, 1.08)
        axes.xaxis.set_major_locator(FixedLocator(range(reach.N_STEPS + 1)))
        axes.tick_params(axis="x", labelsize=8)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(int(value), width)))
    return canvas


def _tick(number: int, width: int) -> str:
    return f"≤{(number + 1) * width}" if number < reach.N_STEPS else f">{number * width}"
