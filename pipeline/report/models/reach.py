"""How far back architectures with windows find a fact: recall by the distance of the needle, in windows.

A layer with a window of W tokens passes information on by W - 1 tokens at most, so that is the width of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.findings import proportions, verdicts
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group
from pipeline.findings.means import SEED, STRICTER
from pipeline.intervals import holm, sign_flip_p_values
from pipeline.record import Interval
from pipeline.report.models.architectures import Architecture
from pipeline.report.tables import Table

N_STEPS = 4  # of which the distance is told apart; the rest is beyond
N_FLIPS = 2000
ONE_NEEDLE = 2  # tokens of the question, where one fact is asked for
TASKS = {"one fact": ("single_needle",), "one of several facts": ("multi_key_8", "multi_key_32")}


@dataclass(frozen=True)
class Item:
    distance: float  # tokens from the needle's value to the end of the question
    correct: float
    correct_reference: float


@dataclass(frozen=True)
class Bin:
    """Items whose needle lies from `nearest` tokens back to `farthest`, or beyond where that is None."""

    nearest: int
    farthest: int | None
    accuracy: Interval
    reference: Interval
    difference: float
    word: str  # against the reference, corrected for the number of distances

    @property
    def where(self) -> str:
        near = q.count(self.nearest)
        return f"{near} and more" if self.farthest is None else f"{near} to {q.count(self.farthest)}"


def windowed(found: Sequence[Architecture]) -> list[Architecture]:
    """Those that do not look at every token in every layer, and were judged."""
    return [one for one in found if one.recalled and (one.shape.get("sliding_window") or one.shape.get("pattern"))]


def window(found: Iterable[Architecture]) -> int | None:
    """Tokens of the narrowest window that any of them says it has."""
    said = [one.shape.get("sliding_window") or (one.shape.get("pattern") or {}).get("window") for one in found]
    return min((int(tokens) for tokens in said if tokens), default=None)


def reach_of(one: Architecture) -> int | None:
    """Tokens back that anything passes through all layers; None where some layer sees farther than a window."""
    tokens = one.shape.get("sliding_window")
    if not tokens or "full_attention" in (one.shape.get("layer_types") or ()):
        return None
    return int(one.shape["num_hidden_layers"]) * (int(tokens) - 1)


def items(rows: Iterable[Row], tasks: Sequence[str]) -> Iterator[Item]:
    for row in rows:
        n_context = row.cell.seq_len - ONE_NEEDLE
        for task in row.record.quality.tasks if row.record.quality else []:
            if task.protocol == STRICTER and task.task in tasks:
                own = task.items
                for depth, *hits in zip(own.depth, own.correct, own.correct_full, strict=True):
                    yield Item(n_context - depth * (n_context - 2), *hits)


def bins(found: Sequence[Item], width: int) -> list[Bin]:
    """Those that hold any item; the verdicts of all are corrected together."""
    members = group(found, lambda item: min(int((item.distance - 1) // width), N_STEPS))
    numbers = sorted(members)
    differences = [[item.correct - item.correct_reference for item in members[number]] for number in numbers]
    adjusted = holm([sign_flip_p_values([own], N_FLIPS, SEED)[0] for own in differences])
    return [
        Bin(
            nearest=number * width + 1,
            farthest=(number + 1) * width if number < N_STEPS else None,
            accuracy=proportions.share(sum(item.correct for item in members[number]), len(members[number])),
            reference=proportions.share(sum(item.correct_reference for item in members[number]), len(members[number])),
            difference=fmean(own),
            word=verdicts.corrected(fmean(own), p),
        )
        for number, own, p in zip(numbers, differences, adjusted, strict=True)
    ]


def by_distance(one: Architecture, tasks: Sequence[str], width: int, *, trained: bool = True) -> list[Bin]:
    """Over all lengths within the trained one, or over all beyond it."""
    rows = [row for row in one.recalled if row.in_trained_length == trained]
    return bins(list(items(rows, tasks)), width)


def tables(found: Sequence[Architecture]) -> Iterator[tuple[str, Table]]:
    own, width = windowed(found), step(found)
    if not own or width is None:
        return
    reference = [one for one in found if one.is_reference and one.recalled]
    for trained, beyond in ((True, ""), (False, ", beyond the trained length (extrapolation)")):
        for heading, tasks in TASKS.items():
            table = _table([*reference, *own], tasks, width, trained)
            if table.rows:
                yield f"Recall of {heading} by the distance of its needle in tokens{beyond}", table


def step(found: Sequence[Architecture]) -> int | None:
    """Of a step: how far one layer of the narrowest window passes information."""
    tokens = window(windowed(found))
    return None if tokens is None else tokens - 1


def _table(found: Sequence[Architecture], tasks: Sequence[str], width: int, trained: bool) -> Table:
    judged = {one.name: by_distance(one, tasks, width, trained=trained) for one in found}
    places = {own.nearest: own.where for measured in judged.values() for own in measured}
    columns = [("Architecture", "l"), *((places[nearest], "r") for nearest in sorted(places))]
    lines = []
    for name, measured in judged.items():
        cells = {own.nearest: f"{q.decimal_interval(own.accuracy)}, n {q.count(own.accuracy.n)}" for own in measured}
        lines.append([f"`{name}`", *(cells.get(nearest, q.DASH) for nearest in sorted(places))])
    return Table(columns, [line for line in lines if set(line[1:]) - {q.DASH}])


def sentences(found: Sequence[Architecture]) -> list[str]:
    """For each with windows, at which distances recall was lost against the reference, and where no loss was found."""
    own, width = [one for one in windowed(found) if not one.is_reference], step(found)
    if not own or not width:
        return []
    told = (
        f"A window of {q.count(width + 1)} tokens lets a layer pass information on by {q.count(width)}, so distances "
        "from a needle to the end of its question are told apart in steps of that, over all lengths within "
        "the trained one together."
    )
    return [told, *(_said(one, width) for one in own)]


def _said(one: Architecture, width: int) -> str:
    told = [f"{name}, {_from_where(own)}" for name, own in _judged(one, width) if own]
    reach = reach_of(one)
    can = f" (its layers reach {q.count(reach)} tokens back)" if reach else ""
    return f"`{one.name}`{can}, by distance against the reference: {'; '.join(told) or 'not measured'}."


def _judged(one: Architecture, width: int) -> list[tuple[str, list[Bin]]]:
    return [(name, by_distance(one, tasks, width)) for name, tasks in TASKS.items()]


def _from_where(own: Sequence[Bin]) -> str:
    """`worse at 190 to 252 and 253 and more tokens (−0.40 and −0.97), no difference found elsewhere`"""
    words = group(own, lambda one: one.word)
    if set(words) == {verdicts.NO_DIFFERENCE}:
        return f"{verdicts.NO_DIFFERENCE} at any distance"
    return ", ".join(
        f"{word} at {q.words(b.where for b in members)} tokens ({q.words(q.signed(b.difference) for b in members)})"
        if word != verdicts.NO_DIFFERENCE
        else f"{word} elsewhere"
        for word, members in sorted(words.items(), key=lambda pair: pair[0] == verdicts.NO_DIFFERENCE)
    )
