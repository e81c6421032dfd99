"""Models made from another one's weights: what pooling lost, and how much of it a few steps win back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.findings import proportions, verdicts
from pipeline.findings import quantities as q
from pipeline.findings.evidence import group
from pipeline.judgement import Gate
from pipeline.record import Interval
from pipeline.report.models import architectures
from pipeline.report.models.architectures import Architecture, at, longest_trained
from pipeline.report.models.stories import TRAINED, Story
from pipeline.report.tables import Table

ACCURACY = "accuracy"  # the unit of those gates that are shares of answers
SUFFIX = "_uptrained"
SUPPORTED, CONTRADICTED = "supported", "contradicted"


def stories(found: Sequence[Architecture]) -> dict[str, Story]:
    return {one.name: one.story for one in found if one.story and one.story.outcome == TRAINED}


def uptrained(told: Mapping[str, Story]) -> list[Story]:
    return [story for story in told.values() if story.milestones and story.starts_from in told]


def tables(found: Sequence[Architecture]) -> Iterator[tuple[str, Table]]:
    """Beside each, its parent and the model of the same shape that was trained from the start."""
    told = stories(found)
    for parent, members in group(uptrained(told), lambda story: story.starts_from or "").items():
        gates = told[parent].gates
        columns = [("Model", "l"), ("Steps", "r"), (f"Of `{parent}`'s", "r")]
        columns += [(f"{q.task(gate.name).capitalize()} at {q.count(gate.seq_len)}", "r") for gate in gates]
        lines = [_line(f"`{parent}`", told[parent].n_steps, told[parent], gates)]
        for story in members:
            lines += _lines(story, told, told[parent])
        units = q.words(dict.fromkeys(gate.unit for gate in gates))
        yield f"Uptraining from `{parent}`, in {units}", Table(columns, lines)


def _lines(story: Story, told: Mapping[str, Story], parent: Story) -> Iterator[list[str]]:
    if twin := told.get(story.name.removesuffix(SUFFIX)):
        yield _line(f"`{twin.name}` from random weights", twin.n_steps, parent, twin.gates)
    for milestone in story.milestones:
        yield _line(f"`{story.name}`", milestone.n_steps, parent, milestone.gates)


def _line(name: str, n_steps: int, parent: Story, gates: Sequence[Gate]) -> list[str]:
    own = {(gate.name, gate.seq_len): _reached(gate) for gate in gates}
    reached = [own.get((gate.name, gate.seq_len), q.DASH) for gate in parent.gates]
    return [name, q.count(n_steps), q.share(n_steps / parent.n_steps), *reached]


def _reached(gate: Gate) -> str:
    if gate.unit != ACCURACY:
        return q.decimal(gate.value)
    return q.decimal_interval(proportions.share(gate.value * gate.n, gate.n))


def recall(gates: Sequence[Gate]) -> Interval:
    """Over the items of all gates of recall."""
    own = [gate for gate in gates if gate.unit == ACCURACY]
    n = sum(gate.n for gate in own)
    return proportions.share(sum(gate.value * gate.n for gate in own), n)


def sentences(found: Sequence[Architecture]) -> list[str]:
    told, names = stories(found), {one.name: one for one in found}
    return [_said(story, told[story.starts_from or ""]) + _paired(names[story.name]) for story in uptrained(told)]


def _said(story: Story, parent: Story) -> str:
    """Two questions: do the steps win anything back, and does anything still lack?"""
    first, last = story.milestones[0], story.milestones[-1]
    before, after, whole = (recall(gates) for gates in (first.gates, last.gates, parent.gates))
    gain, lack = proportions.difference(after, before), proportions.difference(after, whole)
    won = SUPPORTED if gain.low > 0 else CONTRADICTED if gain.high < 0 else verdicts.NO_DIFFERENCE
    return (
        f"`{story.name}`, over {q.count(after.n)} items of recall: {q.decimal_interval(before)} right after pooling, "
        f"{q.decimal_interval(after)} after {q.plural(last.n_steps, 'step')} "
        f"({q.share(last.n_steps / parent.n_steps)} of `{parent.name}`'s); `{parent.name}` itself reaches "
        f"{q.decimal_interval(whole)}. That these steps win recall back: {won} ({q.signed_interval(gain)}). "
        f"Afterwards against `{parent.name}`: {verdicts.accuracy(lack)} ({q.signed_interval(lack)})."
    )


def _paired(one: Architecture) -> str:
    """The same question to the records, item by item; empty where they have no answer."""
    seq_len = longest_trained([one])
    if (own := architectures.recall(at(seq_len, one.recalled))) is None:
        return ""
    return (
        f" Item by item at {q.count(seq_len or 0)} tokens: {verdicts.accuracy(own.difference)} "
        f"({q.signed_interval(own.difference)})."
    )
