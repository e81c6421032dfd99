"""Records with their place: which file, which machine, and which other records they may be compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline import record
from pipeline.record import Cell, Record

BASELINE = "full"
AGAINST = "against_"
_WORDS = {"hardware_id": "machine", "n_new_tokens": "new tokens"}
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, order=True)
class Setting:
    """What two cells must share to be compared: every coordinate but strategy, budget, length, batch."""

    level: str
    workload: str
    model: str
    hardware_id: str
    baseline: str  # what the ratios are to
    weights: str
    engine: str
    dtype: str
    device: str
    n_new_tokens: int
    seed: int

    @property
    def reference(self) -> str:
        """What the ratios and differences are to, as a noun."""
        return "the full cache" if self.baseline == BASELINE else self.baseline


@dataclass(frozen=True)
class Row:
    """One record, the file it is in, and what it may be compared within."""

    record: Record
    path: Path
    setting: Setting

    @property
    def cell(self) -> Cell:
        return self.record.cell

    @property
    def strategy(self) -> str:
        return self.record.cell.strategy

    @property
    def hardware_id(self) -> str:
        return self.setting.hardware_id

    @property
    def point(self) -> tuple[int, int]:
        """(seq_len, batch)"""
        return self.cell.seq_len, self.cell.batch

    @property
    def share(self) -> float | None:
        """KV bytes held over the full cache's, both at the last step: measured where that was done, else predicted."""
        cost, predicted, cell = self.record.cost, self.record.predicted, self.cell
        if cost is not None:
            held, full = cost.technique.kv_bytes_held[-1], cost.full.kv_bytes_held[-1]
        elif predicted is not None:
            n_seen = cell.seq_len + cell.n_new_tokens
            held, full = predicted.kv_bytes_held, predicted.kv_bytes_per_token * cell.batch * n_seen
        else:
            return None
        return held / full if full else None

    @property
    def variant(self) -> str:
        """The budget as it was configured; empty where everything is kept."""
        config = self.config("strategy")
        if config.get("kv_budget") is not None:
            return f"{config['kv_budget']:,} tokens"
        return "" if config.get("keep_ratio") is None else f"{100 * config['keep_ratio']:g} %"

    def config(self, group: str) -> dict[str, Any]:
        """One group of the resolved configuration; empty where the record has none."""
        value = self.record.config.get(group)
        return value if isinstance(value, dict) else {}

    @property
    def trained_length(self) -> int | None:
        """Longest context that means something to the model's weights; None for weights that mean nothing."""
        model = self.config("model")
        return None if model.get("source") == "random" else model.get("max_seq_len")


def load(results_dir: Path) -> list[Row]:
    """Every record below `results_dir`; raises ValueError at a corrupt one and when there is none at all."""
    paths = sorted(results_dir.glob("*/*/*/*.json"))
    rows = [_row(record.read(path), path) for path in paths]
    if not rows:
        raise ValueError(f"results_dir={results_dir}: no records in it; measure some with `make repro`")
    return sorted(_with_workloads_joined(rows), key=order)


def _row(item: Record, path: Path) -> Row:
    own = {f.name: getattr(item.cell, f.name) for f in fields(Setting) if hasattr(item.cell, f.name)}
    named = item.config.get("baseline", {}).get("name", BASELINE)
    # A benchmark brings its own reference, which is no strategy, and says so in its workload.
    baseline = item.cell.workload.removeprefix(AGAINST) if item.cell.workload.startswith(AGAINST) else named
    return Row(item, path, Setting(hardware_id=path.parent.name, baseline=baseline, **own))


def _with_workloads_joined(rows: Iterable[Row]) -> Iterator[Row]:
    """Workloads that share no point are one setting; where two claim the same point, each stays alone."""
    for members in group(rows, lambda row: replace(row.setting, workload="")).values():
        points = [(row.strategy, row.variant, row.point) for row in members]
        joined = "+".join(sorted({row.cell.workload for row in members}))
        for row in members:
            workload = joined if len(set(points)) == len(points) else row.cell.workload
            yield replace(row, setting=replace(row.setting, workload=workload))


def order(row: Row) -> tuple[Any, ...]:
    """Benchmarks last; the baseline first, then by name; inside a technique by budget, batch and length."""
    config = row.config("strategy")
    budget = config.get("kv_budget") or config.get("keep_ratio") or math.inf
    by_name = row.strategy != BASELINE, row.strategy, budget
    return row.setting.baseline != BASELINE, row.setting, *by_name, row.cell.batch, row.cell.seq_len


def group(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, keys in order of first appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def labels(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(strategy, variant) -> the shortest unambiguous name: the budget is said only where a strategy has several."""
    variants = group(dict.fromkeys((row.strategy, row.variant) for row in rows), lambda pair: pair[0])
    return {
        pair: pair[0] if len(pairs) == 1 else f"{pair[0]} {pair[1] or 'all'}"
        for pairs in variants.values()
        for pair in pairs
    }


def titles(settings: Iterable[Setting]) -> dict[Setting, str]:
    """A heading for each: model and workload, and whatever else tells settings of the same level apart."""
    return {
        setting: f"model `{setting.model}`, workload `{setting.workload.replace('+', '` and `')}`"
        + "".join(f", {_WORDS.get(name, name)} `{getattr(setting, name)}`" for name in varying)
        for setting, varying in _distinctions(settings)
    }


def slugs(settings: Iterable[Setting]) -> dict[Setting, str]:
    """A file-name part for each, stable while nothing else has to be told apart."""
    return {
        setting: re.sub(
            r"[^\w.]+",
            "-",
            "-".join([setting.level, setting.workload, setting.model, *(str(getattr(setting, n)) for n in varying)]),
        )
        for setting, varying in _distinctions(settings)
    }


def _distinctions(settings: Iterable[Setting]) -> list[tuple[Setting, list[str]]]:
    unique = list(dict.fromkeys(settings))
    names = [f.name for f in fields(Setting) if f.name not in {"level", "model", "workload"}]

    def varying(setting: Setting) -> list[str]:
        rivals = [other for other in unique if (other.level, other.model) == (setting.level, setting.model)]
        return [name for name in names if len({getattr(rival, name) for rival in rivals}) > 1]

    return [(setting, varying(setting)) for setting in unique]
