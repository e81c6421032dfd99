"""What may be advised: every technique at every budget, with the records of what it costs and what it loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline import bars
from pipeline.findings import verdicts
from pipeline.findings.evidence import ABLATION, BASELINE, Row, changes, group, labels
from pipeline.findings.means import PROTOCOL, mean_difference, shifted, tasks_of, text_loss
from pipeline.record import Arm, Interval

LEVELS = ("token", bars.LEVEL, ABLATION)  # where several measured the same, the first one speaks
CONTROLS = {"no_cache", "random_eviction", "oracle", "scorer=random", "scorer=oracle"}  # compared with, never advised


@dataclass(frozen=True)
class Basis:
    """Whose records speak: costs of one machine on one model, quality on another. None where none was measured."""

    machine: str
    timed_on: str | None
    judged_on: str | None


@dataclass(frozen=True)
class Timed:
    """One record of cost, beside the full cache of the same machine, length and batch."""

    row: Row
    decode: Interval | None  # its decode step over the full cache's; None where one trial, or none, says nothing
    noise: Interval
    share: float  # bytes held, wherever they lie, over the full cache's
    elsewhere: float  # the part of these bytes that lies outside the model's device

    @property
    def verdict(self) -> str:
        return verdicts.speed(self.decode, self.noise) if self.decode else verdicts.UNDEFINED


@dataclass(frozen=True)
class Judged:
    """One record of quality."""

    row: Row
    recall: Mapping[str, Interval]  # by protocol: the share of the full cache's recall that is kept, mean over tasks
    text: Interval | None  # nats lost on text


@dataclass(frozen=True)
class Candidate:
    name: str
    is_control: bool
    costs: Sequence[Timed]  # one for each length and batch that it was timed at, the nearest first
    judged: Judged | None
    share: float | None  # bytes held over the full cache's: as timed, or as computed for another model

    @property
    def timed(self) -> Timed | None:
        """At the nearest length and batch."""
        return self.costs[0] if self.costs else None

    @property
    def row(self) -> Row:
        found = self.judged or self.timed
        assert found is not None
        return found.row

    @property
    def decode(self) -> Interval | None:
        return self.timed.decode if self.timed else None

    def recall(self, protocol: str) -> Interval | None:
        return self.judged.recall.get(protocol) if self.judged else None

    @property
    def text(self) -> Interval | None:
        return self.judged.text if self.judged else None


def comparable(rows: Iterable[Row]) -> list[Row]:
    """Measured points of our own axes, with plain weights in our own loop."""
    return [
        row
        for row in rows
        if row.cell.level in LEVELS
        and row.cell.workload != bars.SEEN
        and (row.cell.weights, row.cell.engine) == ("none", "ours")
        and row.config("strategy").get("scorer")
    ]


def bases(rows: Sequence[Row]) -> list[Basis]:
    """One for each machine that timed anything; quality is arithmetic, so any machine's is taken, its own first."""
    own = comparable(rows)
    judged_on = _most(row for row in own if row.record.quality and row.in_trained_length)
    machines = group((row for row in own if row.record.cost), lambda row: row.hardware_id)
    return [Basis(name, _most(members), judged_on) for name, members in machines.items()]


def _most(rows: Iterable[Row]) -> str | None:
    """The model on which most techniques were measured."""
    models = group(rows, lambda row: row.cell.model)
    return max(models, key=lambda name: len({row.strategy for row in models[name]}), default=None)


def candidates(rows: Sequence[Row], basis: Basis, seq_len: int, batch: int) -> list[Candidate]:
    """Those with any record, each by the ones nearest to this length and batch; without the full cache itself."""
    own = comparable(rows)
    timed = [
        row for row in own if row.record.cost and (row.hardware_id, row.cell.model) == (basis.machine, basis.timed_on)
    ]
    judged = [row for row in own if row.record.quality and row.in_trained_length and row.cell.model == basis.judged_on]
    names = labels([*timed, *judged])
    full = {row.point: row for row in timed if row.strategy == BASELINE and row.cell.level == bars.LEVEL}

    def nearness(row: Row) -> tuple[bool, float, float, int]:
        lengths, batches = (abs(math.log(own / asked)) for own, asked in zip(row.point, (seq_len, batch), strict=True))
        return row.hardware_id != basis.machine, lengths, batches, LEVELS.index(row.cell.level)

    found = []
    costs, qualities = (group(sorted(own, key=nearness), _point) for own in (timed, judged))
    for key in names:
        if key[0] == BASELINE:
            continue
        by_point: dict[tuple[int, int], Timed] = {}
        for row in costs.get(key, []):
            if beside := _timed(row, full):
                by_point.setdefault(row.point, beside)
        timed_at = list(by_point.values())
        quality = next((_judged(row) for row in qualities.get(key, [])), None)
        if timed_at or quality:
            share = timed_at[0].share if timed_at else None
            found.append(Candidate(names[key], _is_control(key[0]), timed_at, quality, share))
    return found


def longest(rows: Iterable[Row], basis: Basis) -> int:
    """Tokens: the longest prompt that was timed."""
    own = (row for row in comparable(rows) if row.hardware_id == basis.machine and row.cell.model == basis.timed_on)
    return max(row.cell.seq_len for row in own if row.record.cost)


def _point(row: Row) -> tuple[str, str]:
    return row.strategy, row.variant


def _is_control(strategy: str) -> bool:
    return bool({strategy.partition("+")[0], *changes(strategy)} & CONTROLS)


def _timed(row: Row, full: Mapping[tuple[int, int], Row]) -> Timed | None:
    """None where the record is relative to another cache, and our full cache was not measured beside it."""
    cost, reference = row.record.cost, full.get(row.point)
    if cost is None:
        return None
    if row.setting.baseline == BASELINE:
        ratio, beside = cost.tpot_ratio, cost.full
    elif reference and reference.record.cost and (to_full := bars.to_full(row.record, reference.record)):
        ratio, beside = to_full, reference.record.cost.technique
    else:
        return None
    held, elsewhere = _bytes(cost.technique), cost.technique.kv_bytes_offloaded
    says_nothing = ratio.n == 1 or not math.isfinite(ratio.estimate)
    return Timed(
        row,
        None if says_nothing else ratio,
        cost.aa_tpot_ratio,
        held / _bytes(beside) if _bytes(beside) else math.inf,
        elsewhere / held if held else 0.0,
    )


def _bytes(arm: Arm) -> int:
    return arm.kv_bytes_held[-1] + arm.kv_bytes_offloaded


def _judged(row: Row) -> Judged:
    kept = {protocol: found for protocol in PROTOCOL if (found := recall_kept(row, protocol))}
    return Judged(row, kept, text_loss(row))


def recall_kept(row: Row, protocol: str) -> Interval | None:
    """Accuracy over the full cache's, mean over the tasks that it can do; the interval is that of their difference."""
    tasks = tasks_of(row, protocol)
    difference = mean_difference(tasks)
    if difference is None:
        return None
    full = fmean(fmean(task.items.correct_full) for task in tasks)
    ends = {end: getattr(difference, end) / full for end in ("estimate", "low", "high")}
    return verdicts.rounded(shifted(Interval(n=difference.n, **ends), 1.0))
