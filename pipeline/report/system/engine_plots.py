"""Figures of engines: tokens per second by how many prompts there are at once, and how long first tokens take."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.findings import quantities as q
from pipeline.findings.evidence import BASELINE, Row
from pipeline.record import Interval, Serving
from pipeline.report import captions
from pipeline.report.drawing import INK, PALETTE, REFERENCE, error_bars, figure, of_trials, style
from pipeline.report.system.engines import BATCH, EQUAL_LENGTHS, MIXED, ONE_BY_ONE, ORDER, OURS, VLLM, Point, points

COLORS = dict(zip(ORDER, (REFERENCE, "#444444", PALETTE[4], PALETTE[0], PALETTE[1]), strict=True))
TITLES = {
    ONE_BY_ONE: "Transformers, one by one",
    BATCH: "Transformers, one batch",
    "hf_continuous": "Transformers, continuous",
    OURS: "our loop, full cache",
    VLLM: "vLLM",
}
WIDTH = 0.16
LINE_IN = 0.3
AROUND_IN = 0.8


def drawn(rows: Sequence[Row]) -> list[tuple[str, str, Figure]]:
    """File name, alternative text, figure."""
    found = points(rows)
    shown, mixed = _shown(found), [point for point in found if point.workload == MIXED and served(point)]
    pictures: list[tuple[str, str, Figure]] = []
    with style():
        if shown:
            rates = _said(shown, _label, lambda own: own.tokens_per_s, q.three)
            pictures.append(("engines", f"tokens per second of each engine, {rates}", _bars(shown)))
        if mixed:
            waits = _said(mixed, lambda point: point.name, lambda own: own.ttft_s_p50, q.seconds)
            pictures.append(("engines_waiting", f"seconds to the first token, {waits}", _waits(mixed)))
    return pictures


def served(point: Point) -> dict[str, Serving]:
    """By engine, in their order."""
    found = {engine: own.serving for engine in ORDER if (own := point.of(engine, BASELINE))}
    return {engine: serving for engine, serving in found.items() if serving}


def _said(
    found: Sequence[Point], name: Callable[[Point], str], of: Callable[[Serving], float], write: Callable[[float], str]
) -> str:
    """Of each point the engines with least and most."""
    parts = []
    for point in found:
        values = {TITLES[engine]: of(own) for engine, own in served(point).items()}
        parts.append(f"{name(point)}: {captions.span(values, write)}")
    return "; ".join(parts)


def _shown(found: Sequence[Point]) -> list[Point]:
    """Those of the commonest lengths."""
    alike = [point for point in found if point.workload == EQUAL_LENGTHS]
    counted = Counter((point.model, point.seq_len, point.n_new_tokens) for point in alike)
    common = [lengths for lengths, _ in counted.most_common(1)]
    return [point for point in alike if (point.model, point.seq_len, point.n_new_tokens) in common]


def _bars(shown: Sequence[Point]) -> Figure:
    canvas = figure(3.6)
    axes = canvas.subplots()
    for number, engine in enumerate(ORDER):
        x, y, trials = [], [], []
        for place, point in enumerate(shown):
            own = point.of(engine, BASELINE)
            if own and own.serving:
                x.append(place + (number - (len(ORDER) - 1) / 2) * WIDTH)
                y.append(own.serving.tokens_per_s)
                trials.append(rate(own.serving))
        axes.bar(x, y, WIDTH * 0.92, color=COLORS[engine], label=TITLES[engine])
        axes.errorbar(x, y, error_bars(trials), linestyle="", color=INK, linewidth=0.9, capsize=2)
        for at, height, seen in zip(x, y, trials, strict=True):
            axes.annotate(q.three(height), (at, seen.high), (0, 3), textcoords="offset points", ha="center",
                          fontsize=7.5, color=INK)  # fmt: skip
    _axes(axes, shown)
    canvas.legend(loc="outside lower center", ncols=len(ORDER), fontsize=8.5, handlelength=1.0, columnspacing=1.2)
    return canvas


def rate(serving: Serving) -> Interval:
    """Tokens per second of the middle, the slowest and the fastest trial: each said the same tokens."""
    n_tokens = serving.tokens_per_s * statistics.median(serving.wall_s)
    seen = of_trials([n_tokens / taken for taken in serving.wall_s])
    return seen.model_copy(update={"estimate": serving.tokens_per_s})


def _axes(axes: Axes, shown: Sequence[Point]) -> None:
    """From zero, so that bars can be compared by their length."""
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value)))
    axes.grid(False, axis="x")
    axes.set_xticks(range(len(shown)), [_label(point) for point in shown])
    first = shown[0]
    axes.set_title(
        f"new tokens per second, {first.model}, prompts of {q.count(first.seq_len)} tokens, "
        f"{q.count(first.n_new_tokens)} new tokens each"
    )


def _label(point: Point) -> str:
    return q.plural(point.n_prompts, "prompt")


def _waits(mixed: Sequence[Point]) -> Figure:
    """Requests whose lengths differ are no point among those of one length, and where they arrive at a rate that we
    chose their tokens per second are no speed: a panel for each, of how long a first token takes.
    """
    n_lines = [len(served(point)) for point in mixed]
    canvas = figure(AROUND_IN + LINE_IN * (sum(n_lines) + len(mixed)))
    panels = canvas.subplots(len(mixed), 1, squeeze=False, height_ratios=n_lines)[:, 0]
    for axes, point in zip(panels, mixed, strict=True):
        found = served(point)
        for line, (engine, serving) in enumerate(found.items()):
            seen = wait(serving)
            axes.barh(line, seen.estimate, 0.8, color=COLORS[engine])
            axes.errorbar(seen.estimate, line, xerr=error_bars([seen]), color=INK, linewidth=0.9, capsize=2)
            ends = f"{q.seconds(seen.estimate)}, {q.seconds(seen.high)}"
            axes.annotate(ends, (seen.high, line), (4, 0), textcoords="offset points", va="center", fontsize=7.5,
                          color=INK)  # fmt: skip
        axes.set_yticks(range(len(found)), [TITLES[engine] for engine in found])
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.grid(False, axis="y")
        axes.set_title(f"{point.model}, {point.name}")
    panels[-1].set_xlabel("seconds to the first token: half of the requests, and a line to nine in ten")
    return canvas


def wait(serving: Serving) -> Interval:
    """For the first token: half of the requests, up to what nine in ten stay below."""
    half = serving.ttft_s_p50
    return Interval(estimate=half, low=half, high=serving.ttft_s_p90, n=len(serving.ttft_s))
