"""The figure of time against quality: a mark for each technique, with both intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.findings import quantities as q
from pipeline.report import captions
from pipeline.report.drawing import INK, LABEL_IN, error_bars, figure, label_ends, mark, style
from pipeline.report.scales import ratio_axis
from pipeline.report.tokens.cost_plots import OFF_SCALE
from pipeline.report.tokens.tradeoff import Both, where


def drawn(found: Sequence[Both]) -> list[tuple[str, str, Figure]]:
    """File name, alternative text, figure."""
    steps = {one.name: one.step.estimate for one in found}
    losses = {one.name: one.loss.estimate for one in found}
    text = f"{where(found)}: steps {captions.span(steps, q.ratio)}, recall lost {captions.span(losses, q.decimal)}"
    with style():
        return [("speed_quality", text, _scatter(found))]


def _scatter(found: Sequence[Both]) -> Figure:
    """Those far slower are said instead of drawn: they would flatten all others."""
    near = [one for one in found if one.step.estimate <= OFF_SCALE] or list(found)
    canvas = figure(max(3.8, 1.2 + LABEL_IN * len(near)))
    axes = canvas.subplots()
    for one in near:
        own = mark(one.timed.strategy)
        axes.errorbar(
            one.loss.estimate, one.step.estimate, error_bars([one.step]), error_bars([one.loss]), color=own.color,
            marker=own.marker, mfc=own.fill, markersize=7, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8)
    ratio_axis(axes, "y", [1.0, *(end for one in near for end in (one.step.low, one.step.high, one.step.estimate))])
    beyond = q.words(f"{one.name} {q.ratio(one.step.estimate)}" for one in found if one not in near) \
        if len(near) < len(found) else ""  # fmt: skip
    axes.set_xlabel("recall lost (0: none)" + (f"\n(far slower, not drawn: {beyond})" if beyond else ""))
    axes.set_ylabel(f"decode step, ratio to {found[0].timed.setting.reference}'s")
    label_ends(
        canvas, axes, [(one.loss.estimate, one.step.estimate, one.name, mark(one.timed.strategy).color) for one in near]
    )
    return canvas
