"""How fast and small each technique must be beside the cache that a model uses by default, and whether it is.

What is measured and what is asked stands in benchmarks/token_level.yaml. A bar inside an interval is neither met nor
missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline import ROOT, intervals, plans
from pipeline.plans import Frozen
from pipeline.record import Cost, Interval, Record

FILE = ROOT / "benchmarks" / "token_level.yaml"
LEVEL = "benchmark"
AGAINST, SEEN = "against_dynamic_cache", "seen"  # its workloads
OURS = "full"
MET, MISSED, NOISE = "met", "missed", "within noise of the bar"
ONE_TRIAL, REPORTED = " (one trial)", "reported, not gated"
BOOKKEEPING = 1.03  # held over logical, headroom apart


class Point(Frozen):
    """One setting in which all arms are timed together; no `arms` means all."""

    model: str
    seq_len: int
    batch: int
    dtype: str = "float32"
    arms: list[str] = Field(default_factory=list)

    def holds(self, record: Record) -> bool:
        cell = record.cell
        there = cell.model == self.model and cell.seq_len == self.seq_len and cell.batch == self.batch
        return there and cell.dtype == self.dtype and cell.workload == AGAINST


class Bar(Frozen):
    """Shares of the reference's cost that a technique may have at most."""

    decode: float
    prefill: float
    kv_bytes: float
    plus: list[Literal["new_tokens", "scores", "residual"]] = Field(default_factory=list)
    compiled: bool = False
    why: str = ""


class Plan(Frozen):
    reference: str
    extra: list[str]
    skipped: dict[str, str]
    default: list[Point]
    grid: list[Point]
    cuda: list[Point] = Field(default_factory=list)
    judged_at: Point
    bars: dict[str, Bar]


@dataclass(frozen=True)
class Judged:
    """One bar of one technique; an `n` of 0 means counted, not timed. `to_full` is the ratio to our own full cache."""

    strategy: str
    kind: str
    at_most: float
    measured: Interval
    verdict: str
    to_full: Interval | None

    @property
    def is_defect(self) -> bool:
        """Missed, and worse than holding everything: no explanation excuses that."""
        return self.verdict.startswith(MISSED) and self.to_full is not None and self.to_full.low > 1


@cache
def load(path: Path = FILE) -> Plan:
    """Raises ValueError, naming field and file, for what is no plan."""
    return plans.read(Plan, path)


def judge(records: Iterable[Record], plan: Plan) -> list[Judged]:
    """Every bar whose technique was measured; `records` are those of one machine."""
    found = {record.cell.strategy: record for record in records if record.cost and plan.judged_at.holds(record)}
    full = found.get(OURS)
    return [line for name, bar in plan.bars.items() if name in found for line in _judge(found[name], bar, full)]


def defects(records: Iterable[Record], plan: Plan) -> list[str]:
    """One line for every missed bar that is also worse than our own full cache, on any machine."""
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(str(record.environment.get("hardware_id")), []).append(record)
    return [
        f"bar {line.strategy} {line.kind}: {line.measured.estimate:.2f} of {plan.reference}, allowed are "
        f"{line.at_most:.2f}, and {line.to_full.estimate:.2f} of {OURS}"
        for members in machines.values()
        for line in judge(members, plan)
        if line.is_defect and line.to_full
    ]


def to_full(record: Record, full: Record | None) -> Interval | None:
    """Its decode step over our full cache's, trial by trial; what both are relative to cancels."""
    if record.cost is None or full is None or full.cost is None:
        return None
    mine, theirs = (_trial_ratios(cost) for cost in (record.cost, full.cost))
    n = min(len(mine), len(theirs))
    return intervals.ratio(mine[:n], theirs[:n], n_resamples=2000, seed=record.cell.seed)


def _trial_ratios(cost: Cost) -> list[float]:
    return np.divide(cost.technique.tpot_s, cost.full.tpot_s).tolist()


def _judge(record: Record, bar: Bar, full: Record | None) -> list[Judged]:
    cost, name = record.cost, record.cell.strategy
    assert cost is not None
    gated = not bar.compiled or bool(record.environment.get("cpp_compiler"))
    whole = cost.full.kv_bytes_logical
    logical, held = cost.technique.kv_bytes_logical / whole, cost.technique.kv_bytes_held[-1] / whole
    at_most = bar.kv_bytes + sum(_addition(kind, record, bar) for kind in bar.plus)
    headroom = record.cell.n_new_tokens / (record.cell.seq_len + record.cell.n_new_tokens)
    size_to_full = _counted(cost.technique.kv_bytes_logical / full.cost.technique.kv_bytes_logical) \
        if full and full.cost else None  # fmt: skip
    lines: list[tuple[str, float, Interval, Interval | None]] = [
        ("decode", bar.decode, cost.tpot_ratio, to_full(record, full)),
        ("prefill", bar.prefill, cost.ttft_ratio, None),
        ("logical bytes", at_most, _counted(logical), size_to_full),
        ("held bytes", BOOKKEEPING * logical + headroom, _counted(held), None),
    ]
    return [
        Judged(name, kind, bound, measured, verdict(measured, bound) if gated else REPORTED, full_ratio)
        for kind, bound, measured, full_ratio in lines
    ]


def verdict(measured: Interval, at_most: float) -> str:
    """One trial bounds nothing, so its word says that it was one."""
    if measured.n <= 1:
        return (MET if measured.estimate <= at_most else MISSED) + (ONE_TRIAL if measured.n else "")
    return MET if measured.high <= at_most else MISSED if measured.low > at_most else NOISE


def _addition(kind: str, record: Record, bar: Bar) -> float:
    """What the paper's share leaves out, as a share of the reference's bytes."""
    cell = record.cell
    if kind == "new_tokens":
        return cell.n_new_tokens / cell.seq_len
    config: Mapping[str, Any] = record.config
    if kind == "scores":  # one number beside the key and the value of a head
        return bar.kv_bytes / (2 * config["model"]["config"]["head_dim"])
    encoding = config["strategy"].get("encoding") or {}
    return (encoding.get("n_recent", 0) + encoding.get("group_size", 0)) / cell.seq_len


def _counted(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value, n=0)


def break_even(lengths: Sequence[tuple[int, Interval]]) -> int | None:
    """The smallest measured length from which every ratio to the full cache lies wholly below 1; None without one."""
    slow_until = max((length for length, ratio in lengths if not ratio.high < 1), default=0)
    return min((length for length, _ in lengths if length > slow_until), default=None)
