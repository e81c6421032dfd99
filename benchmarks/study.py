"""The earlier study of conf/study.yaml, repeated: all its settings of one length interleaved against one full cache.

    python -m benchmarks.study                           GPT-2's shape, or GPT-2 Large's where there is a GPU
    python -m benchmarks.study model=gpt2_large seed=1

Each setting becomes a record of level `study`, the same that `pipeline.run workload=study` writes for one technique
alone. Records that still hold are kept; all that are missing are measured together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra import compose, initialize_config_dir
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline import grid, hardware, record, study, timing
from pipeline.config import Experiment
from pipeline.findings.evidence import group
from pipeline.findings.verdicts import speed
from pipeline.fingerprint import fingerprint
from pipeline.levels.paired import Bench
from pipeline.record import Cell, Record
from pipeline.refusals import CONF, refusals
from pipeline.study import LEVEL, Setting


@dataclass(frozen=True)
class Row:
    """One setting of the study: its cell and the record it becomes."""

    setting: Setting
    experiment: Experiment

    @classmethod
    def of(cls, setting: Setting, overrides: Sequence[str]) -> Row:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return cls(setting, Experiment.from_hydra(compose("config", [*setting.overrides, *overrides])))

    @cached_property
    def cell(self) -> Cell:
        return self.experiment.cells()[0]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.experiment.resolved, self.cell, hardware.identity())

    @property
    def path(self) -> Path:
        return record.path_of(self.cell, self.experiment.results_path, hardware.hardware_id())

    def existing(self) -> Record | None:
        """The record that is there, if it still holds. Raises ValueError for a corrupt one."""
        return grid.kept(self.path, self.fingerprint)


def run(overrides: Sequence[str] = ()) -> dict[str, Record | None]:
    """The record of each setting by its id; None where there is no such technique here."""
    given = [f"model={'gpt2_large' if hardware.has_cuda() else 'gpt2'}", "tracking=disabled", *overrides]
    settings = study.read().rows
    rows = [Row.of(setting, given) for setting in settings if _is_here(setting)]
    locks = rows[0].experiment.results_path / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{LEVEL}.lock"):
        found = {row.setting.id: row.existing() for row in rows}
        missing = [row for row in rows if found[row.setting.id] is None]
        for of_one_length in group(missing, lambda row: row.cell.n_new_tokens).values():
            found |= _measured(of_one_length)
    return {setting.id: found.get(setting.id) for setting in settings}


def _is_here(setting: Setting) -> bool:
    return (CONF / "strategy" / f"{setting.strategy}.yaml").exists()


def _measured(rows: Sequence[Row]) -> dict[str, Record]:
    """All rows together; one that cannot even start becomes a record that says why, and the others go on."""
    n_new_tokens = rows[0].cell.n_new_tokens
    print(f"measuring {len(rows)} settings over {n_new_tokens:,} new tokens", file=sys.stderr, flush=True)
    started = time.perf_counter()
    told: dict[str, dict[str, Any]] = {}
    with timing.pinned_threads(rows[0].experiment.n_threads):
        benches = dict(_started(rows, told))
        try:
            told |= _timed(benches)
        except Exception as error:
            told |= {name: grid.failure(error) for name in benches}
    wall_s = time.perf_counter() - started
    written = {
        row.setting.id: grid.made(row.experiment, row.cell, row.fingerprint, wall_s, **told[row.setting.id])
        for row in rows
    }
    for row in rows:
        record.write(written[row.setting.id], row.path)
    return written


def _started(rows: Sequence[Row], told: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Bench]]:
    """The rows that can take a prompt and a step; why the others cannot is put into `told`."""
    for row in rows:
        try:
            bench = Bench.of(row.cell, row.experiment)
            stream_BN = bench.random_tokens(2)
            with bench.arms.technique(row.cell.n_new_tokens) as decoder:
                for ids_B1 in stream_BN.split(1, dim=1):
                    decoder.feed(ids_B1)
            yield row.setting.id, bench
        except Exception as error:
            told[row.setting.id] = grid.failure(error)


def _timed(benches: dict[str, Bench]) -> dict[str, dict[str, Any]]:
    """Predicted and measured cost of each, against one full cache."""
    if not benches:
        return {}
    first, *_ = benches.values()
    arms: dict[str, timing.NewDecoder] = {
        name: partial(bench.arms.technique, bench.cell.n_new_tokens) for name, bench in benches.items()
    }
    full = partial(first.arms.full, first.cell.n_new_tokens)
    samples = first.timed(arms | {"full": full, "full_again": full})
    reference = {name: samples[name] for name in ("full", "full_again")}
    return {
        name: {
            "status": "ok",
            "predicted": bench.predicted,
            "cost": bench.summed(samples[name], **reference),
        }
        for name, bench in benches.items()
    }


def show(found: dict[str, Record | None]) -> None:
    table = Table("setting", "earlier", "decode step now", "is", "KV held", "peak memory", box=box.SIMPLE)
    for setting in study.read().rows:
        table.add_row(setting.title, setting.earlier.said, *_now(found[setting.id], setting))
    Console().print(table)


def _now(found: Record | None, setting: Setting) -> list[str]:
    if found is None:
        return ["", f"skipped: there is no strategy={setting.strategy}", "", ""]
    if (cost := found.cost) is None:
        return ["", f"{found.status}: {found.reason}", "", ""]
    own, full, ratio = cost.technique, cost.full, cost.tpot_ratio
    return [
        f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        speed(ratio, cost.aa_tpot_ratio),
        f"{own.kv_bytes_held[-1] / full.kv_bytes_held[-1]:.0%}",
        f"{max(own.step_peak_memory_bytes) / max(full.step_peak_memory_bytes):.1%}",
    ]


if __name__ == "__main__":
    with refusals():
        results = run(sys.argv[1:])
    show(results)
