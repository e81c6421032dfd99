"""The decode step of the slot cache against Transformers' DynamicCache, in one process, paired and interleaved.

    python -m benchmarks.decode_step workload.seq_len=2048 seed=1

Each technique becomes a record of level `benchmark` and workload `against_dynamic_cache`. In these records `cost.full`
is the reference, which here is DynamicCache with stock attention, and `cost.full_again` is DynamicCache once more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra import compose, initialize_config_dir
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline import hardware, record, timing
from pipeline.config import Experiment
from pipeline.fingerprint import fingerprint
from pipeline.levels.token import Bench
from pipeline.record import Cell, Cost, Predicted, Record
from pipeline.refusals import CONF, refusals

LEVEL, WORKLOAD = "benchmark", "against_dynamic_cache"
STRATEGIES = ("full", "sliding_window", "attention_sink")
# One prefill is enough here: it is the decode step that is compared.
DEFAULTS = [
    "strategy@baseline=hf_dynamic",
    "workload=cost",
    "workload.seq_len=4096",
    "workload.batch=1",
    "workload.n_new_tokens=65",
    "profile.n_prefill_trials=1",
    "profile.n_decode_trials=16",
    "profile.max_cell_s=900",
    "tracking=disabled",
]


@dataclass(frozen=True)
class Row:
    """One technique against the reference: a cell of this level and the record it becomes."""

    experiment: Experiment
    cell: Cell

    @classmethod
    def of(cls, strategy: str, overrides: Sequence[str]) -> Row:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            experiment = Experiment.from_hydra(compose("config", [f"strategy={strategy}", *DEFAULTS, *overrides]))
        return cls(experiment, experiment.cells()[0].model_copy(update={"level": LEVEL, "workload": WORKLOAD}))

    @property
    def config(self) -> dict[str, Any]:
        """What really ran, where that is not what the configuration of the token level says."""
        resolved = self.experiment.resolved
        return resolved | {
            "level": {"name": LEVEL, "measure": {"_target_": "pipeline.levels.token.Bench.timed"}},
            "workload": resolved["workload"] | {"name": WORKLOAD, "measure": ["cost"]},
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.config, self.cell, hardware.identity())

    @property
    def path(self) -> Path:
        return record.path_of(self.cell, self.experiment.results_path, hardware.hardware_id())


def run(overrides: Sequence[str] = ()) -> list[Record]:
    """One record for each technique: those that are there and still hold, or new ones, all measured together."""
    rows = [Row.of(strategy, overrides) for strategy in STRATEGIES]
    locks = rows[0].experiment.results_path / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{LEVEL}.lock"):
        return _existing(rows) or _measured(rows)


def _existing(rows: Sequence[Row]) -> list[Record]:
    """Empty unless every row has its record. Raises ValueError for a corrupt one."""
    found = [record.read(row.path) for row in rows if row.path.exists()]
    return found if [old.fingerprint for old in found] == [row.fingerprint for row in rows] else []


def _measured(rows: Sequence[Row]) -> list[Record]:
    started = time.perf_counter()
    with timing.pinned_threads(rows[0].experiment.n_threads):
        benches = {row.cell.strategy: Bench.of(row.cell, row.experiment) for row in rows}
        first, *_ = benches.values()
        arms: dict[str, timing.NewDecoder] = {
            name: partial(bench.arms.technique, bench.cell.n_new_tokens) for name, bench in benches.items()
        }
        stock = partial(first.arms.full, first.cell.n_new_tokens)
        samples = first.timed(arms | {"dynamic": stock, "dynamic_again": stock})
    wall_s = time.perf_counter() - started
    reference = {"full": samples["dynamic"], "full_again": samples["dynamic_again"]}
    written = []
    for row, bench in zip(rows, benches.values(), strict=True):
        cost = bench.summed(samples[row.cell.strategy], **reference)
        written.append(_record(row, bench.predicted, cost, wall_s))
        record.write(written[-1], row.path)
    return written


def _record(row: Row, predicted: Predicted, cost: Cost, wall_s: float) -> Record:
    return Record(
        cell=row.cell,
        status="ok",
        fingerprint=row.fingerprint,
        config=row.config,
        environment={
            "hardware_id": hardware.hardware_id(),
            "hardware": hardware.identity(),
            "versions": hardware.versions(),
            "n_threads": row.experiment.n_threads,
        },
        predicted=predicted,
        cost=cost,
        wall_s=wall_s,
    )


def show(records: Sequence[Record]) -> None:
    table = Table("arm", "step p50", "of DynamicCache", "95 % interval", "A/A", box=box.SIMPLE)
    for measured in records:
        cost = measured.cost
        assert cost is not None
        ratio, noise = cost.tpot_ratio, cost.aa_tpot_ratio
        table.add_row(
            measured.cell.strategy,
            f"{1e3 * cost.technique.tpot_s_p50:.2f} ms",
            f"{ratio.estimate:.2f}",
            f"{ratio.low:.2f} … {ratio.high:.2f}",
            f"{noise.low:.2f} … {noise.high:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    with refusals():
        show(run(sys.argv[1:]))
