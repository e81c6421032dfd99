"""The ledger as tables and sentences: all claims in one table, each with its readings, and what the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group
from pipeline.report.claims.facts import of_files, of_rows
from pipeline.report.claims.ledger import Expected, Ledger, read
from pipeline.report.claims.quantities import Quantity
from pipeline.report.claims.verdicts import CONTRADICTED, MIXED, NOT_TESTED, ORDER, SUPPORTED, Judged, Reading, judge
from pipeline.report.parts import Files, Part
from pipeline.report.sentences import paper
from pipeline.report.tables import Table

LEDGER = "claims.md"
TEMPLATE = "claims/claims.md.j2"
APART = " · "  # between what several tests of one claim say


@dataclass(frozen=True)
class Entry:
    """One claim as its section shows it; `nearness` is what each test really tests, once."""

    id: str
    claim: str
    source: str
    verdict: str
    nearness: list[str]
    readings: Table
    missing: list[str]


@dataclass(frozen=True)
class Judgement:
    ledger: Ledger
    judged: list[Judged]

    def source(self, of: Judged) -> str:
        source = self.ledger.source(of.claim)
        return f"{source.title}, {paper(source.citation)}"


def judgement(rows: Sequence[Row], results_dir: Path) -> Judgement:
    """Raises ValueError where the claims, or a file of results, cannot be read."""
    ledger = read()
    facts = [*of_rows(rows), *of_files(results_dir)]
    return Judgement(ledger, [judge(claim, facts) for claim in ledger.claims])


def render(found: Judgement, environment: Environment, reports_dir: Path) -> Files:
    text = environment.get_template(TEMPLATE).render(
        sentences=sentences(found),
        ledger=_ledger(found, found.judged),
        entries=[_entry(found, one, reports_dir) for one in found.judged],
    )
    return {LEDGER: text.encode()}


def summary(found: Judgement) -> Part:
    """For the report: how many of each, and those of which some cell decides."""
    decided = [(verdict, _with(found, verdict)) for verdict in (CONTRADICTED, MIXED, SUPPORTED)]
    tables = [(verdict.capitalize(), _ledger(found, members, LEDGER)) for verdict, members in decided if members]
    return Part("Claims", [_how_judged(), *sentences(found)], tables)


def _how_judged() -> str:
    return (
        f"Each cell is judged by itself: *{SUPPORTED}* where the 95{q.GLUE}% interval lies wholly within what is "
        f"claimed, *{CONTRADICTED}* where wholly outside, better or worse than claimed. Where it reaches across, "
        f"*{verdicts.NO_DIFFERENCE}* is said of a claimed direction, *{verdicts.UNDECIDED}* of a claimed value, range "
        "or bound. A claim has the word on which all of its cells agree; where they do not it is "
        f"*{MIXED}*, with how many say what, which refutes nothing by itself; where none supports or contradicts it, "
        f"*{verdicts.UNDECIDED}*. *Found* is of several cells the lowest to the highest estimate."
    )


def _with(found: Judgement, verdict: str) -> list[Judged]:
    return [one for one in found.judged if one.verdict == verdict]


def sentences(found: Judgement) -> list[str]:
    counts = [f"{verdict} {q.count(len(_with(found, verdict)))}" for verdict in ORDER]
    sources = group(found.judged, lambda one: one.claim.source)
    several = [one for one in found.judged if len(one.counted) > 1]
    divided = [one for one in several if len({reading.verdict for reading in one.counted}) > 1]
    return [
        f"{q.plural(len(found.judged), 'claim')} from {q.plural(len(sources), 'source')}: {', '.join(counts)}.",
        f"Tested by more than one cell: {q.count(len(several))}; where cells do not agree: {q.count(len(divided))}.",
    ]


def _ledger(found: Judgement, judged: Sequence[Judged], page: str = "") -> Table:
    columns = [("Claim", "l"), ("Source", "l"), ("Claimed", "l"), ("Found", "l"), ("Tested as", "l"), ("Verdict", "l")]
    return Table(columns, [_line(found, one, page) for one in judged])


def _line(found: Judgement, one: Judged, page: str) -> list[str]:
    claim = f"[{q.free_text(one.claim.claim)}]({page}#{one.claim.id})"
    return [claim, found.source(one), *_decided(one), _verdict(one)]


def _decided(one: Judged) -> list[str]:
    """What was claimed of each quantity, what it is, and what was really tested, over all cells that count."""
    if not one.counted:
        return [q.DASH] * 3
    asked = group(one.counted, lambda reading: (reading.quantity, reading.test.expected))
    nearness = dict.fromkeys(q.free_text(reading.test.tested_as) for reading in one.counted)
    return [
        APART.join(claimed(quantity, expected) for quantity, expected in asked),
        APART.join(f"{quantity.title}: {_found(quantity, members)}" for (quantity, _), members in asked.items()),
        APART.join(nearness),
    ]


def _found(quantity: Quantity, readings: Sequence[Reading]) -> str:
    """Of several cells the lowest and the highest estimate: one of them would stand for none of the others."""
    if len(readings) == 1:
        return quantity.write(readings[0].measured.value)
    estimates = [reading.measured.value.estimate for reading in readings]
    low, high = quantity.number(min(estimates)), quantity.number(max(estimates))
    return low if low == high else f"{low} to {high}"


def _verdict(one: Judged) -> str:
    """Where cells differ, also in the side of a contradiction, how many say what."""
    said = group(sorted(one.counted, key=lambda reading: ORDER.index(reading.verdict)), lambda reading: reading.says)
    if len(said) > 1:
        return f"{one.verdict} ({'; '.join(f'{q.count(len(cells))} {word}' for word, cells in said.items())})"
    word = next(iter(said), one.verdict)
    return f"{word} ({q.count(len(one.counted))} cells)" if len(one.counted) > 1 else word


def claimed(quantity: Quantity, expected: Expected) -> str:
    low, high = (quantity.number(end) for end in expected.ends)
    if expected.below is not None:
        return f"below {high}"
    return f"above {low}" if expected.above is not None else f"{low} to {high}"


def _entry(found: Judgement, one: Judged, reports_dir: Path) -> Entry:
    nearness = dict.fromkeys(q.free_text(reading.tested_as) for reading in one.claim.tests)
    return Entry(
        id=one.claim.id,
        claim=q.free_text(one.claim.claim),
        source=found.source(one),
        verdict=_verdict(one),
        nearness=list(nearness),
        readings=_readings(one.readings, reports_dir),
        missing=one.missing,
    )


def _readings(readings: Sequence[Reading], reports_dir: Path) -> Table:
    columns = [("Cell", "l"), ("Quantity", "l"), ("Claimed", "l"), ("Found", "r"), ("Noise", "r"), ("Says", "l")]
    return Table(columns, [_reading(reading, reports_dir) for reading in readings])


def _reading(reading: Reading, reports_dir: Path) -> list[str]:
    quantity, measured = reading.quantity, reading.measured
    names = [fact.link(reports_dir) for fact in reading.facts]
    verdict = f"{NOT_TESTED}: {reading.why}" if reading.why else reading.says
    return [
        " against ".join(names),
        quantity.title,
        claimed(quantity, reading.test.expected),
        quantity.write(measured.value),
        q.ratio_ends(measured.noise) if measured.noise else q.DASH,
        verdict,
    ]
