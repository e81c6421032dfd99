"""Several machines side by side: the same techniques in the same settings, and how far their orders agree.

What is compared between machines are ratios and differences to a baseline of the same process, never seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pipeline.findings import quantities as q
from pipeline.findings.evidence import BASELINE, MODEL, Row, Setting, group, labels
from pipeline.findings.means import negated
from pipeline.findings.orders import tau_b
from pipeline.record import Cell, Interval
from pipeline.report.parts import Part
from pipeline.report.ranking import QUANTITIES, Quantity
from pipeline.report.tables import Table

ENOUGH = 3  # techniques that two machines must share: two can be ordered alike by chance every other time
NATIVE = "native"  # the cache of an architecture itself, whose reference is another model
NAMED = 5  # swapped pairs that are written out; the others are counted


@dataclass(frozen=True)
class Place:
    """A machine, and how it computed there: the profile of a GPU has another dtype and more tokens."""

    hardware_id: str
    dtype: str
    device: str
    n_new_tokens: int

    @property
    def settings(self) -> str:
        return f"{self.dtype}, {self.device}, {q.plural(self.n_new_tokens, 'new token')}"


@dataclass(frozen=True)
class Compared:
    """One quantity at one point: of each place, of each technique, its value."""

    quantity: Quantity
    point: tuple[int, int]  # seq_len, batch
    values: Mapping[Place, Mapping[str, Interval]]

    def name(self, place: Place) -> str:
        """The machine, and how it computed where that is not alike everywhere."""
        alike = len({other.settings for other in self.values}) == 1
        return f"`{place.hardware_id}`" + ("" if alike else f" ({place.settings})")


def parts(rows: Sequence[Row]) -> list[Part]:
    """One for each setting that several machines measured; empty with one machine.

    With several machines that share nothing, one part that says so.
    """
    if len({row.hardware_id for row in rows}) < 2:
        return []
    found = [
        _part(setting, compared)
        for setting, members in group(rows, _setting).items()
        if (compared := list(_compared(members)))
    ]
    nothing = f"No {q.count(ENOUGH)} techniques were measured in one setting on more than one machine."
    return found or [Part("what they share", [nothing], [])]


def swapped(first: Mapping[str, Interval], second: Mapping[str, Interval]) -> list[tuple[str, str]]:
    """Pairs of which `first` puts one surely below the other and `second` surely above: no interval meets another."""
    common = [name for name in first if name in second]
    ordered = [(x, y) for pair in combinations(common, 2) for x, y in (pair, pair[::-1])]
    return [(x, y) for x, y in ordered if first[x].high < first[y].low and second[y].high < second[x].low]


def _setting(row: Row) -> Setting:
    """Without what may differ between machines, and without what is compared in it."""
    alone = replace(row.setting, hardware_id="", dtype="", device="", n_new_tokens=0, weights="", engine="")
    return replace(alone, model="") if row.cell.level == MODEL else alone


def _part(setting: Setting, compared: Sequence[Compared]) -> Part:
    on = f", model `{setting.model}`" if setting.model else ""
    to = f", against {setting.reference}" if setting.baseline not in (BASELINE, NATIVE) else ""
    title = f"level {setting.level}{on}, workload `{setting.workload.replace('+', '` and `')}`{to}"
    agreement = [(one, *places) for one in compared for places in _pairs(one)]
    columns = [("By", "l"), ("Tokens", "r"), ("Batch", "r"), ("Machines", "l"), ("Techniques", "r")]
    columns += [("Kendall's tau-b", "r"), ("Surely swapped pairs", "r")]
    table = Table(columns, [_line(*pair) for pair in agreement])
    return Part(
        title,
        [*filter(None, (_sentence(*pair) for pair in agreement)), *_alike(agreement)],
        [("Agreement of the orders", table)],
        [(f"Side by side: {_where(one)}", _side_by_side(one)) for one in compared],
    )


def _compared(rows: Sequence[Row]) -> Iterator[Compared]:
    """Of each batch and quantity the longest length at which two machines share enough techniques."""
    names = _names(rows)
    for members in group(rows, lambda row: row.cell.batch).values():
        by_point = group(members, lambda row: row.point)
        for quantity in (*QUANTITIES, THROUGHPUT):
            found = [Compared(quantity, at, _values(by_point[at], names, quantity)) for at in sorted(by_point)]
            yield from [one for one in found if _pairs(one)][-1:]


def _names(rows: Sequence[Row]) -> Mapping[Cell, str]:
    """Of each cell what is compared: the architecture on the level of models, else technique, weights and engine."""
    of_strategy = labels(rows)
    return {
        row.cell: row.cell.model
        if row.cell.level == MODEL
        else of_strategy[row.strategy, row.variant] + row.cell.technique.removeprefix(row.strategy)
        for row in rows
    }


def _values(
    rows: Iterable[Row], names: Mapping[Cell, str], quantity: Quantity
) -> Mapping[Place, Mapping[str, Interval]]:
    """Without what is one sample or undefined: it orders nothing."""
    places: dict[Place, dict[str, Interval]] = {}
    for row in rows:
        value = quantity.of(row)
        if value and value.n != 1 and all(map(math.isfinite, (value.estimate, value.low, value.high))):
            place = Place(row.hardware_id, row.cell.dtype, row.cell.device, row.cell.n_new_tokens)
            places.setdefault(place, {})[names[row.cell]] = value
    return places


def _pairs(one: Compared) -> list[tuple[Place, Place]]:
    return [
        (a, b)
        for a, b in combinations(one.values, 2)
        if a.hardware_id != b.hardware_id and len(_common(one, a, b)) >= ENOUGH
    ]


def _common(one: Compared, a: Place, b: Place) -> list[str]:
    return [name for name in one.values[a] if name in one.values[b]]


def _agreement(one: Compared, a: Place, b: Place) -> float | None:
    common = _common(one, a, b)
    first, second = ([one.values[place][name].estimate for name in common] for place in (a, b))
    return tau_b(first, second)


def _where(one: Compared) -> str:
    seq_len, batch = one.point
    return f"{one.quantity.title.lower()}, {q.count(seq_len)} tokens, batch {q.count(batch)}"


def _line(one: Compared, a: Place, b: Place) -> list[str]:
    tau = _agreement(one, a, b)
    return [
        one.quantity.title,
        *map(q.count, one.point),
        f"{one.name(a)}, {one.name(b)}",
        q.count(len(_common(one, a, b))),
        q.DASH if tau is None else q.decimal(tau),
        q.count(len(swapped(one.values[a], one.values[b]))),
    ]


def _sentence(one: Compared, a: Place, b: Place) -> str:
    """What is surely ordered otherwise, or cannot be ordered; empty where neither is so."""
    n, swaps = q.plural(len(_common(one, a, b)), "technique"), swapped(one.values[a], one.values[b])
    if (tau := _agreement(one, a, b)) is None:
        return f"By {_where(one)}: {one.name(a)} or {one.name(b)} tells none of {n} apart."
    if not swaps:
        return ""
    named = [f"{x} before {y}" for x, y in swaps[:NAMED]]
    others = [f"{q.count(len(swaps) - NAMED)} more"] if len(swaps) > NAMED else []
    return (
        f"By {_where(one)}: over {n} the orders of {one.name(a)} and {one.name(b)} correlate with {q.decimal(tau)}; "
        f"surely so on the first and the other way round on the second: {q.words([*named, *others])}."
    )


def _alike(agreement: Sequence[tuple[Compared, Place, Place]]) -> list[str]:
    """One sentence for all orders in which no pair is swapped."""
    found = [
        f"{_where(one)} ({q.decimal(tau)})"
        for one, a, b in agreement
        if (tau := _agreement(one, a, b)) is not None and not swapped(one.values[a], one.values[b])
    ]
    return [f"No pair is surely the other way round, with tau-b in brackets, by {'; '.join(found)}."] if found else []


def _side_by_side(one: Compared) -> Table:
    """By the first machine's order; what it lacks comes last."""
    first, *_ = one.values
    names = list(dict.fromkeys(name for found in one.values.values() for name in found))
    names.sort(key=lambda name: one.values[first][name].estimate if name in one.values[first] else math.inf)
    lines = [
        [name, *(one.quantity.write(found[name]) if name in found else q.DASH for found in one.values.values())]
        for name in names
    ]
    return Table([("Technique", "l"), *((one.name(place), "r") for place in one.values)], lines)


def _throughput(row: Row) -> Interval | None:
    """Smallest is best, as everywhere: the speed-up, turned round."""
    measured = row.record.throughput
    return negated(measured.speedup_batch) if measured and measured.speedup_batch else None


THROUGHPUT = Quantity(
    "Throughput",
    "Over Transformers in one batch",
    _throughput,
    lambda value: q.ratio_interval(negated(value)),
    lambda row: "",  # verdicts on engines are in their own section
)
