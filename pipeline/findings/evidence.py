"""Records with their place: which file, which machine, and which other records they may be compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline import record
from pipeline.findings import faults
from pipeline.record import Cell, Record, TaskQuality, TextQuality

BASELINE = "full"
ABLATION = "ablation"
MODEL = "model"  # the level of architectures, whose reference is another model
SYSTEM = "system"  # the level of weights, whose reference is plain ones
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
        """What the ratios and differences are to, as a noun: `the full cache`, `HfDynamic`."""
        return "the full cache" if self.baseline == BASELINE else self.baseline.title().replace("_", "")


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
        """KV bytes held over the reference's, both at the last decode step; None where no cost was measured."""
        cost = self.record.cost
        return _ratio(cost.technique.kv_bytes_held[-1], cost.full.kv_bytes_held[-1]) if cost else None

    @property
    def crossing_s(self) -> float:
        """Seconds in which all that lies on the host crosses the measured link once, as it does in every step; 0
        where nothing lies there, or the host is the device.
        """
        cost = self.record.cost
        return cost.technique.kv_bytes_offloaded / (cost.link_bandwidth_bytes_per_s or math.inf) if cost else 0.0

    @property
    def step_floor_s(self) -> float | None:
        """Of a decode step: one layer crosses the link while another is read, so the longer time of the two."""
        predicted = self.record.predicted
        return max(predicted.decode_floor_s, self.crossing_s) if predicted else None

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

    @property
    def in_trained_length(self) -> bool:
        return self.trained_length is None or self.cell.seq_len <= self.trained_length


def held_share(measured: Sequence[TaskQuality | TextQuality]) -> float | None:
    """KV bytes held over the reference's where quality was measured: one item after its last token, over all parts."""
    return _ratio(sum(part.kv_bytes_held for part in measured), sum(part.kv_bytes_held_full for part in measured))


def _ratio(held: int, full: int) -> float | None:
    return held / full if full else None


def load(results_dir: Path) -> list[Row]:
    """Every record below `results_dir`; raises ValueError at a corrupt or misplaced one, and where there is none."""
    rows = [_row(item, results_dir) for item in record.read_all(results_dir)]
    if not rows:
        raise ValueError(f"results_dir={results_dir}: no records in it; measure some with `make repro`")
    _require_own_places(rows)
    return sorted(_with_workloads_joined(rows), key=order)


def _require_own_places(rows: Iterable[Row]) -> None:
    """Each record lies where its cell and machine say, and once: else links lead nowhere and cells count twice."""
    for path, members in group(rows, lambda row: row.path).items():
        if not path.is_file():
            raise ValueError(f"{path}: the record of this cell lies in another file; move it there")
        if len(members) > 1:
            raise ValueError(f"{path}: {len(members)} files hold the record of this cell; delete all but this one")


def _row(item: Record, results_dir: Path) -> Row:
    if not item.environment.get("hardware_id"):
        raise ValueError(f"record of {item.cell.strategy} ({item.cell.slug}): environment.hardware_id is missing")
    own = {f.name: getattr(item.cell, f.name) for f in fields(Setting) if hasattr(item.cell, f.name)}
    baseline, machine = item.config.get("baseline", {}).get("name", BASELINE), item.environment["hardware_id"]
    path = record.path_of(item.cell, results_dir, machine)
    return Row(faults.sound(item), path, Setting(hardware_id=machine, baseline=baseline, **own))


def _with_workloads_joined(rows: Iterable[Row]) -> Iterator[Row]:
    """Workloads that share no point are one setting; where two claim the same point, each stays alone."""
    for members in group(rows, lambda row: replace(row.setting, workload="")).values():
        points = [(row.strategy, row.variant, row.point) for row in members]
        joined = "+".join(sorted({row.cell.workload for row in members}))
        for row in members:
            workload = joined if len(set(points)) == len(points) else row.cell.workload
            yield replace(row, setting=replace(row.setting, workload=workload))


def order(row: Row) -> tuple[Any, ...]:
    """The baseline first, then by name; inside a technique by budget, batch and length; other references last."""
    config = row.config("strategy")
    budget = config.get("kv_budget") or config.get("keep_ratio") or math.inf
    by_name = row.strategy != BASELINE, row.strategy, budget
    return row.setting.baseline != BASELINE, row.setting, *by_name, row.cell.batch, row.cell.seq_len


def fullest(rows: Iterable[Row], measured: Iterable[Row]) -> list[Row]:
    """The rows at the point where most techniques were to be measured, of several the smallest batch, then the longest.

    Among the points of `measured`; `rows` may hold what was skipped or failed there too. Empty without any.
    """
    candidates = {row.point for row in measured}
    points = group((row for row in rows if row.point in candidates), lambda row: row.point)
    return max(points.values(), key=_fullness, default=[])


def _fullness(rows: Sequence[Row]) -> tuple[int, int, int]:
    return len({row.strategy for row in rows}), -rows[0].cell.batch, rows[0].cell.seq_len


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
        pair: label(pair[0]) if len(pairs) == 1 else f"{label(pair[0])} {pair[1] or 'all'}"
        for pairs in variants.values()
        for pair in pairs
    }


def label(strategy: str) -> str:
    """`attention_sink+scorer.n_sinks=8` -> `attention_sink, scorer.n_sinks=8`"""
    return ", ".join([strategy.partition("+")[0], *changes(strategy)])


def changes(strategy: str) -> list[str]:
    """What the command line changed of a published point; a `+` inside a value (1e+05) parts nothing."""
    return re.split(r"\+(?=[a-z_]+[.=])", strategy)[1:]


def slug(text: str) -> str:
    """Letters, digits and single hyphens, for file names and anchors."""
    return re.sub(r"\W+", "-", text).strip("-")


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
        setting: slug(
            "-".join([setting.level, setting.workload, setting.model, *(str(getattr(setting, n)) for n in varying)])
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
