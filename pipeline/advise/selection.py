"""Which candidates meet a rule, best first, and by how much others miss it: one code for report and advisor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.advise.candidates import Candidate
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.means import PROTOCOL, negated
from pipeline.findings.orders import ranks
from pipeline.record import Interval

Objective = Literal["memory", "speed", "quality"]
Share = Annotated[float, Field(ge=0, le=1)]
UNKNOWN = Interval(estimate=math.inf, low=math.inf, high=math.inf, n=0)
RECALL, TEXT, BYTES, SPEED = "recall", "text", "bytes", "speed"  # what a rule may be about
WORDS = {"not_slower": {verdicts.FASTER, verdicts.NO_DIFFERENCE}, "faster": {verdicts.FASTER}}


class Needs(BaseModel):
    """Bounds, and what is best within them. A bound holds by the estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["query_aware", "query_agnostic"] = "query_agnostic"  # the stricter one
    min_recall: Share | None = None  # of the full cache's
    max_text_loss: Annotated[float, Field(ge=0)] | None = None  # nats
    max_share: Annotated[float, Field(ge=0)] | None = None  # bytes over the full cache's
    max_step: Annotated[float, Field(gt=0)] | None = None  # a decode step over the full cache's
    speed: Literal["any", "not_slower", "faster"] = "any"  # the word; what is undecided is neither
    objective: Objective


@dataclass(frozen=True)
class Miss:
    about: str
    said: str  # what the candidate does, as the end of a sentence that begins with its name
    by: float  # how far from the bound, as a share; infinite where nothing was measured


@dataclass(frozen=True)
class Selection:
    fitting: list[Candidate]  # best first
    missing: list[tuple[Candidate, list[Miss]]]  # nearest first


def select(found: Sequence[Candidate], needs: Needs) -> Selection:
    judged = [(one, list(misses(one, needs))) for one in found if not one.is_control]
    fitting = best_first([one for one, missed in judged if not missed], needs)
    missing = [(one, missed) for one, missed in judged if missed]
    return Selection(fitting, sorted(missing, key=_distance))


def best_first(found: Sequence[Candidate], needs: Needs) -> list[Candidate]:
    """Times and shares of recall that intervals do not tell apart are equal; then the other quantities decide."""
    speed = ranks([one.decode or UNKNOWN for one in found])
    recalls = [one.recall(needs.protocol) for one in found]
    quality = ranks([negated(kept) if kept else UNKNOWN for kept in recalls])
    memory = [math.inf if one.share is None else round(one.share, 3) for one in found]
    orders: dict[Objective, tuple[Sequence[float], ...]] = {
        "memory": (memory, speed, quality),
        "speed": (speed, memory, quality),
        "quality": (quality, memory, speed),
    }
    keys = zip(*orders[needs.objective], (one.name for one in found), found, strict=True)
    return [one for *_, one in sorted(keys, key=lambda key: key[:-1])]


def misses(one: Candidate, needs: Needs) -> Iterator[Miss]:
    yield from _recall(one, needs)
    yield from _text(one, needs)
    yield from _share(one, needs)
    yield from _speed(one, needs)


def _distance(item: tuple[Candidate, list[Miss]]) -> tuple[int, float, str]:
    one, missed = item
    return len(missed), sum(miss.by for miss in missed), one.name


def _recall(one: Candidate, needs: Needs) -> Iterator[Miss]:
    kept, bound = one.recall(needs.protocol), needs.min_recall
    if bound is not None and kept is None:
        yield Miss(RECALL, "has no measured recall", math.inf)
    elif bound and kept and kept.estimate < bound:
        yield Miss(RECALL, f"keeps {q.share(kept.estimate)} of recall ({PROTOCOL[needs.protocol]})",
                   (bound - kept.estimate) / bound)  # fmt: skip


def _text(one: Candidate, needs: Needs) -> Iterator[Miss]:
    if needs.max_text_loss is not None and one.text is None:
        yield Miss(TEXT, "has no measured loss on text", math.inf)
    elif needs.max_text_loss is not None and one.text and one.text.estimate > needs.max_text_loss:
        nats = f"loses {q.decimal(one.text.estimate, 3)} nats on text"
        yield Miss(TEXT, nats, one.text.estimate - needs.max_text_loss)


def _share(one: Candidate, needs: Needs) -> Iterator[Miss]:
    if needs.max_share is not None and one.share is None:
        yield Miss(BYTES, "has no measured bytes", math.inf)
    elif needs.max_share is not None and one.share is not None and one.share > needs.max_share:
        yield Miss(BYTES, f"holds {q.share(one.share)} of the full cache's bytes", one.share - needs.max_share)


def _speed(one: Candidate, needs: Needs) -> Iterator[Miss]:
    """A decode step is bounded by its estimate, and slower or faster where the report calls it so: noise hides both."""
    if needs.speed == "any" and needs.max_step is None:
        return
    if one.timed is None or one.decode is None:
        yield Miss(SPEED, "has no measured decode step", math.inf)
        return
    word, step, bound = one.timed.verdict, one.decode.estimate, needs.max_step or math.inf
    if step > bound or word not in WORDS.get(needs.speed, {word}):
        said = f"takes {q.ratio(step)} of the full cache's decode step ({word})"
        yield Miss(SPEED, said, max(step - (needs.max_step or 1.0), 0.0))
