"""From a claim and the facts that test it to one word, with what they rest on and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.record import Interval
from pipeline.report.claims.facts import Fact, partners, selected
from pipeline.report.claims.ledger import NAMED, Check, Claim, Expected
from pipeline.report.claims.quantities import ABOVE, BELOW, QUANTITIES, Measured, Quantity
from pipeline.report.claims.remedies import described, remedy
from pipeline.report.tables import STATUS

SUPPORTED, CONTRADICTED, MIXED = "supported", "contradicted", "mixed"
NOT_TESTED = "not tested"
ORDER = (CONTRADICTED, MIXED, SUPPORTED, verdicts.NO_DIFFERENCE, verdicts.UNDECIDED, NOT_TESTED)


@dataclass(frozen=True)
class Reading:
    """One test on one fact, or on a pair; `why` where it gives no verdict."""

    test: Check
    facts: tuple[Fact, ...]
    measured: Measured
    verdict: str
    why: str = ""

    @property
    def quantity(self) -> Quantity:
        return QUANTITIES[self.test.quantity]

    @property
    def says(self) -> str:
        """The verdict, and of a contradiction on which side of the claim it lies."""
        return f"{self.verdict}, {self._side}" if self.verdict == CONTRADICTED else self.verdict

    @property
    def _side(self) -> str:
        low, _ = self.test.expected.ends
        side = BELOW if self.measured.judged.high < low else ABOVE
        if not self.quantity.better:
            return f"{side} what is claimed"
        return "better than claimed" if side == self.quantity.better else "worse than claimed"


@dataclass(frozen=True)
class Judged:
    """A claim with all its readings; `missing` says what was to be read and is not there, and what would help."""

    claim: Claim
    readings: list[Reading]
    missing: list[str]

    @property
    def verdict(self) -> str:
        """The word that all cells have; where they differ it is mixed, unless none of them decides."""
        words = {reading.verdict for reading in self.counted}
        if len(words) < 2:
            return words.pop() if words else NOT_TESTED
        return MIXED if words & {SUPPORTED, CONTRADICTED} else verdicts.UNDECIDED

    @property
    def counted(self) -> list[Reading]:
        return [reading for reading in self.readings if reading.verdict != NOT_TESTED]


def judge(claim: Claim, facts: Sequence[Fact]) -> Judged:
    found = [_tested(test, facts) for test in claim.tests]
    readings = [reading for own, _ in found for reading in own]
    missing = [q.free_text(claim.untested)] if claim.untested else []
    return Judged(claim, readings, [*missing, *dict.fromkeys(line for _, lines in found for line in lines)])


def _tested(test: Check, facts: Sequence[Fact]) -> tuple[list[Reading], list[str]]:
    quantity = QUANTITIES[test.quantity]
    groups = list(_groups(test, facts))
    found = [(group, quantity.of(*group)) for group in groups]
    readings = [_reading(test, group, measured) for group, measured in found if measured]
    lacking = [_without(quantity, group) for group, measured in found if measured is None]
    absent = [f"No record of {described(part)}. {remedy(part)}" for part in _absent(test, groups)]
    return readings, [*lacking, *absent]


def _groups(test: Check, facts: Sequence[Fact]) -> Iterator[tuple[Fact, ...]]:
    for fact in selected(facts, test.cells):
        if not test.against:
            yield (fact,)
        else:
            yield from ((fact, other) for other in partners(fact, facts, test.against))


def _absent(test: Check, groups: Sequence[tuple[Fact, ...]]) -> Iterator[Check]:
    """What of a test found nothing: all of it, or of a list of names those that no fact has."""
    if not groups:
        yield test
        return
    for side, index in (("cells", 0), ("against", 1)):
        wanted: dict[str, Any] = getattr(test, side)
        for key in (name for name in NAMED if isinstance(wanted.get(name), list)):
            there = {group[index].where.get(key) for group in groups}
            if missing := [name for name in wanted[key] if name not in there]:
                yield test.model_copy(update={side: wanted | {key: missing}})


def _without(quantity: Quantity, group: Sequence[Fact]) -> str:
    """Of cells that were not measured the reason, of others what their records lack."""
    for fact in group:
        if fact.row and fact.row.record.status != "ok":
            record = fact.row.record
            what_helps = f" What would help: {q.free_text(record.remedy)}." if record.remedy else ""
            return f"{fact.name}: {STATUS[record.status]}, {q.free_text(record.reason)}.{what_helps}"
    return f"{q.words(fact.name for fact in group)}: without a value for “{quantity.title}”."


def _reading(test: Check, group: tuple[Fact, ...], measured: Measured) -> Reading:
    if why := _unusable(measured):
        return Reading(test, group, measured, NOT_TESTED, why)
    return Reading(test, group, measured, compared(measured.judged, test.expected))


def _unusable(measured: Measured) -> str:
    """A single sample bounds nothing; what was counted (`n` of 0) is sure."""
    intervals = [measured.value, *([measured.noise] if measured.noise else [])]
    if any(interval.n == 1 for interval in intervals):
        return verdicts.ONE_SAMPLE
    ends = [end for interval in intervals for end in (interval.low, interval.high)]
    no_ratio = measured.noise is not None and not measured.noise.low > 0
    return verdicts.UNDEFINED if no_ratio or any(math.isnan(end) for end in ends) else ""


def compared(value: Interval, expected: Expected) -> str:
    """Wholly inside of what is claimed, wholly outside, or across one of its ends.

    Across the end of a direction no difference was found; across any other, a difference may well have been.
    """
    low, high = expected.ends
    if value.high < low or value.low > high:
        return CONTRADICTED
    if low < value.low and value.high < high:
        return SUPPORTED
    return verdicts.NO_DIFFERENCE if expected.is_direction else verdicts.UNDECIDED
