"""How the trainings went: when recall formed, and the loss on text from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.findings import quantities as q
from pipeline.report import captions
from pipeline.report.drawing import INK, REFERENCE
from pipeline.report.models.architectures import Architecture
from pipeline.report.models.panels import look, panels
from pipeline.report.models.stories import Story

Drawn = list[tuple[str, str, Figure]]  # file name, alternative text, figure
Curve = list[tuple[int, float]]  # (step, value)


def drawn(found: Sequence[Architecture]) -> Drawn:
    told = [one for one in found if one.story]
    from_random = [one for one in told if one.story and not one.story.starts_from and recall(one.story)]
    read = [one for one in told if one.story and text(one.story)]
    pictures: Drawn = []
    if from_random:
        solved = {one.name: one.story.solved_at_step for one in from_random if one.story}
        formed = {name: float(step) for name, step in solved.items() if step is not None}
        text_of = f"accuracy of answers by training step: formed at step {captions.span(formed, q.count)}" \
            if formed else "accuracy of answers by training step: formed in none"  # fmt: skip
        others = [name for name, step in solved.items() if step is None]
        text_of += f"; not formed: {q.words(others)}" if others else ""
        pictures.append(("model_recall_curves", text_of, _recall(from_random)))
    if read:
        last = {one.name: text(one.story)[-1][1] for one in read if one.story}
        said = f"loss on a batch of text by training step, at the end {captions.span(last, q.decimal)} nats"
        pictures.append(("model_text_curves", said, _text(read)))
    return pictures


def recall(story: Story) -> Curve:
    """Of the first phase, in which recall forms: later ones start their running mean anew."""
    return [(step, point["running_accuracy"]) for phase, step, point in story.measured() if phase == 0]


def text(story: Story) -> Curve:
    """Steps count from where text came in."""
    found = [(phase, step, point["text_nll"]) for phase, step, point in story.measured() if "text_nll" in point]
    before = sum(phase.n_steps for phase in story.phases[: found[0][0]]) if found else 0
    return [(step - before, nll) for _, step, nll in found]


def _recall(found: Sequence[Architecture]) -> Figure:
    canvas, places = panels(found, "training step, contexts of the first phase", "running accuracy of answers")
    for axes, one in places:
        assert one.story
        _beside(axes, one, [other for other in found if other.is_reference], recall)
        axes.axhline(one.story.recipe["formed_accuracy"], color=INK, linewidth=0.6, linestyle=":")
        solved = one.story.solved_at_step
        if solved:
            axes.axvline(solved, color=look(one).color, linewidth=0.8, linestyle="--")
        said = "not formed" if solved is None else f"formed at {solved:,}"
        axes.set_title(f"{one.name}: {said}", color=look(one).color, fontsize=9)
        axes.set_ylim(0, 1.05)
    return canvas


def _text(found: Sequence[Architecture]) -> Figure:
    canvas, places = panels(found, "training step since text came in", "loss on a batch of text, nats")
    for axes, one in places:
        _beside(axes, one, [other for other in found if other.is_reference], text)
    return canvas


def _beside(axes: Axes, one: Architecture, reference: Sequence[Architecture], curve: Callable[[Story], Curve]) -> None:
    """Its own curve over that of the reference, which is grey everywhere but in its own panel."""
    for other, color, width in (*((r, REFERENCE, 1.0) for r in reference), (one, look(one).color, 1.5)):
        if other.story and (points := curve(other.story)):
            axes.plot(*zip(*points, strict=True), color=color, linewidth=width)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
