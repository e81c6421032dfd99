"""One axis at a time: techniques whose every other part and budget are the same, against the axis's default."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, changes, group, held_share, label
from pipeline.findings.means import N_RESAMPLES, PROTOCOL, SEED, STRICTER, accuracies, tasks_of
from pipeline.intervals import bootstrap, holm, sign_flip_p_values
from pipeline.record import Interval
from pipeline.report.ablations.equal_bytes import N_FLIPS
from pipeline.report.sentences import grouped
from pipeline.report.tables import Table, link


@dataclass(frozen=True)
class Varied:
    """Rows that differ in `axis` alone. The first is the default: the baseline's part or else a published one."""

    axis: str
    rows: list[Row]

    @property
    def kept(self) -> str:
        """What they have in common, by the technique that has the default."""
        return " at ".join(part for part in (f"`{label(self.rows[0].strategy)}`", self.rows[0].variant) if part)


@dataclass(frozen=True)
class Compared:
    """One row against the default: a difference and its verdict by protocol, and the difference on text."""

    row: Row
    recall: Mapping[str, tuple[Interval, str]]
    text: Interval | None


def varied(rows: Sequence[Row]) -> dict[str, list[Varied]]:
    """By axis, in the order in which a strategy lists them; axes that nobody varied are left out."""
    axes = list(dict.fromkeys(axis for row in rows for axis in parts(row)))
    return {axis: found for axis in axes if (found := _varied(axis, rows))}


def parts(row: Row) -> dict[str, dict[str, Any]]:
    return {axis: part for axis, part in row.config("strategy").items() if isinstance(part, dict) and axis != "cache"}


def _varied(axis: str, rows: Sequence[Row]) -> list[Varied]:
    def rest(row: Row) -> str:
        return _key([row.variant, row.point, {name: part for name, part in parts(row).items() if name != axis}])

    def distance(row: Row) -> tuple[bool, int]:
        return parts(row)[axis] != row.config("baseline").get(axis), len(changes(row.strategy))

    found = []
    for members in group((row for row in rows if row.record.quality and axis in parts(row)), rest).values():
        distinct = group(sorted(members, key=distance), lambda row: _key(parts(row)[axis])).values()
        if len(distinct) > 1:
            found.append(Varied(axis, [same[0] for same in distinct]))
    return found


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def part_name(row: Row, of: Varied) -> str:
    """`per_token, bits=8`: its module, and the options in which parts of the same class differ here."""
    own = parts(row)[of.axis]
    same = [parts(other)[of.axis] for other in of.rows if parts(other)[of.axis]["_target_"] == own["_target_"]]
    options = [f"{key}={value}" for key, value in own.items() if any(other.get(key) != value for other in same)]
    return ", ".join([own["_target_"].split(".")[-2], *options])


def compare(found: Sequence[Varied]) -> list[list[Compared]]:
    """For each group its rows but the default; verdicts are corrected over all of the axis, protocol by protocol."""
    judged = {protocol: _judged(found, protocol) for protocol in PROTOCOL}

    def compared(row: Row, default: Row) -> Compared:
        recall = {protocol: words[id(row)] for protocol, words in judged.items() if id(row) in words}
        return Compared(row, recall, _text(row, default))

    return [[compared(row, of.rows[0]) for row in of.rows[1:]] for of in found]


def _judged(found: Sequence[Varied], protocol: str) -> dict[int, tuple[Interval, str]]:
    """By the identity of a row, which is in one group of an axis."""
    differences: dict[int, list[float]] = {}
    for of in found:
        base = accuracies(tasks_of(of.rows[0], protocol))
        for row in of.rows[1:]:
            if base and (own := accuracies(tasks_of(row, protocol))):
                differences[id(row)] = [a - b for a, b in zip(own, base, strict=True)]
    if not differences:
        return {}
    adjusted = holm(sign_flip_p_values(list(differences.values()), N_FLIPS, SEED))
    intervals = [bootstrap(values, N_RESAMPLES, SEED) for values in differences.values()]
    words = [verdicts.corrected(i.estimate, p) for i, p in zip(intervals, adjusted, strict=True)]
    return dict(zip(differences, zip(intervals, words, strict=True), strict=True))


def _text(row: Row, default: Row) -> Interval | None:
    own, base = (r.record.quality and r.record.quality.text for r in (row, default))
    if not own or not base:
        return None
    pairs = zip(own.items.nll, base.items.nll, strict=True)
    return bootstrap([a - b for a, b in pairs], N_RESAMPLES, SEED)


def table(found: Sequence[Varied], compared: Sequence[Sequence[Compared]], reports_dir: Path) -> Table:
    columns = [("Else as", "l"), (q.task(found[0].axis).capitalize(), "l"), ("Technique", "l"), ("Share of bytes", "r")]
    columns += [("Recall, query-agnostic", "r"), ("is", "l"), ("Recall, query-aware", "r"), ("is", "l")]
    columns += [("Text loss, nats", "r")]
    lines = []
    for of, others in zip(found, compared, strict=True):
        lines.append([of.kept, *_named(of.rows[0], of, reports_dir), *_default_cells(of.rows[0])])
        lines += [["", *_named(item.row, of, reports_dir), *_difference_cells(item)] for item in others]
    return Table(columns, lines)


def _named(row: Row, of: Varied, reports_dir: Path) -> list[str]:
    share = held_share(row.record.quality.tasks) if row.record.quality else None
    return [f"`{part_name(row, of)}`", link(row, label(row.strategy), reports_dir), q.share(share)]


def _default_cells(row: Row) -> list[str]:
    """What it reached; the lines below it are differences from that."""
    cells = []
    for protocol in (STRICTER, *(p for p in PROTOCOL if p != STRICTER)):
        reached = accuracies(tasks_of(row, protocol))
        cells += [q.decimal(sum(reached) / len(reached)) if reached else q.DASH, ""]
    text = row.record.quality.text if row.record.quality else None
    return [*cells, q.decimal(text.nll, 3) if text else q.DASH]


def _difference_cells(item: Compared) -> list[str]:
    cells = []
    for protocol in (STRICTER, *(p for p in PROTOCOL if p != STRICTER)):
        difference, word = item.recall.get(protocol, (None, q.DASH))
        cells += [q.signed_interval(difference) if difference else q.DASH, word]
    return [*cells, q.signed_interval(item.text, 3) if item.text else q.DASH]


def sentences(found: Sequence[Varied], compared: Sequence[Sequence[Compared]]) -> list[str]:
    """One for each group, under the stricter protocol."""
    return [line for of, others in zip(found, compared, strict=True) if (line := _sentence(of, others))]


def _sentence(of: Varied, others: Sequence[Compared]) -> str:
    judged = [(item.row, *item.recall[STRICTER]) for item in others if STRICTER in item.recall]
    if not judged:
        return ""
    names = {(row.strategy, row.variant): part_name(row, of) for row in of.rows}
    said = grouped([(row, word, difference, q.signed) for row, difference, word in judged], names)
    return (
        f"{PROTOCOL[STRICTER].capitalize()} recall with all else as in {of.kept}, against {q.task(of.axis)} "
        f"`{part_name(of.rows[0], of)}`: {said}."
    )
