"""What can test a claim: records, and what other files of results hold, each with the coordinates it is chosen by."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import judgement
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, label
from pipeline.memory import production
from pipeline.record import Cell, Interval
from pipeline.serving import results as serving
from pipeline.serving.results import Served

COORDINATES = (*Cell.model_fields, "hardware_id", "baseline")
# Parts of results/memory.json, serving.json and gates.json, each with its coordinates.
PARTS = {
    "shapes": ("model", "holding", "seq_len"),
    "heads": ("n_kv_heads", "seq_len"),
    "scenarios": ("title",),
    "stack": ("title",),
    "policies": ("policy",),
    "fills": ("lengths", "layout"),
    "recounted": (),
    "gates": ("name",),
}
# What a selection does not name is the usual; ratios to another cache than the full one have to be asked for.
USUAL: Mapping[str, Any] = {"weights": "none", "engine": "ours", "baseline": ["full", "native"]}
BUDGET = "kv_budget"
GIB = 2**30


@dataclass(frozen=True)
class Fact:
    """A record, or one line of another file with its `values`; `where` are the coordinates."""

    where: Mapping[str, Any]
    path: Path
    name: str
    row: Row | None = None
    values: Mapping[str, Interval] = field(default_factory=dict)

    def link(self, reports_dir: Path) -> str:
        return f"[{self.name}]({quote(Path(os.path.relpath(self.path, reports_dir)).as_posix())})"


def of_rows(rows: Iterable[Row]) -> list[Fact]:
    return [_of_row(row) for row in rows]


def _of_row(row: Row) -> Fact:
    other = {"hardware_id": row.hardware_id, "baseline": row.setting.baseline}
    return Fact(row.cell.model_dump() | other, row.path, _name(row), row)


def _name(row: Row) -> str:
    """`h2o`, 1,024 tokens on `bench`; what is not the usual, and how much is kept."""
    cell = row.cell
    others = [f"`{name}`" for name in (cell.weights.removeprefix("none"), cell.engine.removeprefix("ours")) if name]
    what = [] if cell.strategy in USUAL["baseline"] and others else [f"`{label(cell.strategy)}`"]
    if cell.strategy == "native":
        what = [f"`{cell.model}`"]
    more = [f"batch {q.count(cell.batch)}"] if cell.batch > 1 else []
    more += [f"{q.count(cell.kv_budget)} kept"] if cell.kv_budget is not None else []
    on = "" if cell.strategy == "native" else f" on `{cell.model}`"
    return ", ".join([" with ".join([*what, *others]), f"{q.plural(cell.seq_len, 'token')}{on}", *more])


def of_files(results_dir: Path) -> list[Fact]:
    """Computed and judged, not records of cells. Raises ValueError where a file is corrupt."""
    return [*_of_memory(results_dir), *_of_serving(results_dir), *_of_gates(results_dir)]


def _of_memory(results_dir: Path) -> Iterator[Fact]:
    found, path = production.read(results_dir), results_dir / production.FILE
    if found is None:
        return
    for shape in found.shapes:
        for held in shape.held:
            for seq_len, kept in zip(found.plan.seq_len, held.kept, strict=False):  # nothing where it is refused
                where = {"part": "shapes", "model": shape.model, "holding": held.title, "seq_len": seq_len}
                name = f"`{shape.model}`, {q.plural(seq_len, 'token')}, {held.title}"
                yield Fact(where, path, name, values={"kv_gib": exact(kept / GIB)})
    for heads in found.heads:
        for seq_len, kept, batch in zip(found.plan.heads.seq_len, heads.kept, heads.largest_batch, strict=True):
            where = {"part": "heads", "n_kv_heads": heads.n_kv_heads, "seq_len": seq_len}
            name = f"{found.plan.heads.title}, {q.plural(heads.n_kv_heads, 'KV head')}, {q.plural(seq_len, 'token')}"
            yield Fact(where, path, name, values={"kv_gib": exact(kept / GIB), "largest_batch": exact(batch)})
    for part, asked, points in (
        ("scenarios", found.plan.scenarios, found.scenarios),
        ("stack", found.plan.stack, found.stack),
    ):
        for point in points:
            name = f"{asked.title}, {q.plural(asked.seq_len, 'token')}: {point.title}"
            values = {"kv_gib": exact(point.kept / GIB), "largest_batch": exact(point.largest_batch)}
            yield Fact({"part": part, "title": point.title}, path, name, values=values)


def _of_serving(results_dir: Path) -> Iterator[Fact]:
    found, path = serving.read(results_dir), results_dir / serving.FILE
    if found is None:
        return
    first = found.policies[0].served
    for of in found.policies:
        values = {"utilisation": exact(of.served.utilisation), "sequences_ratio": exact(_over(of.served, first))}
        yield Fact({"part": "policies", "policy": of.policy}, path, f"policy `{of.policy}`, simulated", values=values)
    for fill in found.cases.fills:
        blocks = fill.n_blocks * fill.asked.block_size
        for layout, n_slots in (("contiguous", fill.n_contiguous), ("blocks", blocks)):
            where = {"part": "fills", "lengths": fill.asked.lengths, "layout": layout}
            name = f"lengths {', '.join(map(q.count, fill.asked.lengths))}, {layout}"
            yield Fact(where, path, name, values={"utilisation": exact(fill.n_tokens / n_slots)})
    study = found.cases.study
    ratio = exact(study.n_paged / study.asked.n_contiguous)
    name = f"{q.count(study.n_slots)} slots, sequences of {q.plural(study.asked.mean_len, 'token')}"
    yield Fact({"part": "recounted"}, path, name, values={"sequences_ratio": ratio})


def _over(served: Served, first: Served) -> float:
    return served.concurrent_mean / first.concurrent_mean if first.concurrent_mean else float("nan")


def _of_gates(results_dir: Path) -> Iterator[Fact]:
    found = judgement.read(results_dir)
    for gate in found.gates if found else []:
        name = f"{q.task(gate.name)}, {q.plural(gate.seq_len, 'token')}"
        values = {"gate": gate.interval or Interval(estimate=gate.value, low=gate.value, high=gate.value, n=1)}
        yield Fact({"part": "gates", "name": gate.name}, results_dir / judgement.FILE_NAME, name, values=values)


def exact(value: float) -> Interval:
    """Counted, not sampled: `n` is 0."""
    return Interval(estimate=value, low=value, high=value, n=0)


def selected(facts: Sequence[Fact], cells: Mapping[str, Any]) -> list[Fact]:
    """A coordinate has the value, one of a list, or lies between `min` and `max`."""
    # What is asked for comes first: it tells most facts apart, and of many records each is looked at for every claim.
    wanted = cells if "part" in cells else {**cells, **USUAL, **cells}
    return [fact for fact in facts if all(_fits(fact.where.get(key), value) for key, value in wanted.items())]


def _fits(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found is not None and wanted.get("min", found) <= found <= wanted.get("max", found)
    if isinstance(found, list):
        return bool(found == wanted)
    return found in wanted if isinstance(wanted, list) else bool(found == wanted)


def partners(fact: Fact, facts: Sequence[Fact], against: Mapping[str, Any]) -> list[Fact]:
    """All that differs from `fact` only in `against`; a budget differs only from that of a cache that keeps all."""
    same = {key: value for key, value in fact.where.items() if key not in against and key != BUDGET}
    found = selected(facts, {**against, **same})
    budgets = [(other, {fact.where.get(BUDGET), other.where.get(BUDGET)}) for other in found]
    return [other for other, kept in budgets if len(kept) == 1 or None in kept]
