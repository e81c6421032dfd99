"""vLLM beside Transformers and our own loop: every point of conf/engines.yaml, its engines in turns.

python -m pipeline.engines              measures what has no record yet
python -m pipeline.engines seed=1       whatever is given changes all points
python -m pipeline.engines prune=true   and removes what is no point any more; for the stage that owns the folder
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from omegaconf import OmegaConf

from pipeline import ROOT, checks, console, grid, hardware, record, sweep
from pipeline.config import Experiment
from pipeline.engines.host import Host
from pipeline.fingerprint import digest, fingerprint
from pipeline.grid import Done, Grid
from pipeline.record import Cell, Record, Throughput
from pipeline.refusals import CONF, refusals

POINTS = CONF / "engines.yaml"


@dataclass(frozen=True)
class Row:
    """One engine at one point, and the record that it becomes."""

    experiment: Experiment
    cell: Cell

    @property
    def point(self) -> str:
        """What all engines of a point share."""
        asked = self.cell.model_dump(exclude={"engine", "strategy", "kv_budget"})
        return digest([asked, self.experiment.model.model_dump(), self.experiment.workload.model_dump()])

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.experiment.resolved, self.cell, hardware.identity())

    @property
    def path(self) -> Path:
        return record.path_of(self.cell, self.experiment.results_path, hardware.hardware_id())

    def kept(self) -> Record | None:
        """Its record, where one is there and still holds. Raises ValueError for a corrupt one."""
        return grid.kept(self.path, self.fingerprint)

    def written(self, result: Throughput | Exception, wall_s: float) -> Done:
        told = grid.failure(result) if isinstance(result, Exception) else {**grid.OK, "throughput": result}
        made = grid.made(self.experiment, self.cell, self.fingerprint, wall_s, **told)
        record.write(made, self.path)
        return Done(made, self.path, reused=False)


def rows(overrides: Sequence[str]) -> list[Row]:
    """Every point once. Raises ValueError for the first that is refused, before any is measured."""
    listed = OmegaConf.load(POINTS)
    lines = [*listed.default, *(listed.cuda if hardware.has_cuda() else [])]
    asked = ([*shlex.split(listed.shared), *shlex.split(line), *overrides] for line in lines)
    found = [Row(one, cell) for line in asked for one in sweep.experiments(line) for cell in one.cells()]
    for row in found:
        checks.check_shape(row.experiment)
    return list({row.path: row for row in found}.values())


def measure(asked: Sequence[Row]) -> Grid:
    """What has no record is measured, point by point, beside both baselines whether they have records or not."""
    results = asked[0].experiment.results_path
    (results / ".locks").mkdir(parents=True, exist_ok=True)
    points: dict[str, list[Row]] = {}
    for row in asked:
        points.setdefault(row.point, []).append(row)
    with FileLock(results / ".locks/engine.lock"), Host() as host, console.progress(len(asked), "engines") as announce:
        done = []
        for members in points.values():
            for item in _measured(members, host):
                done.append(item)
                announce(item)
        removed = grid.prune_level(asked[0].experiment, done) if asked[0].experiment.prune else []
    return Grid(done, removed, None)


def _measured(members: Sequence[Row], host: Host) -> Iterator[Done]:
    from pipeline.levels.engine import measure_point

    missing = []
    for row in members:
        if kept := row.kept():
            yield Done(kept, row.path, reused=True)
        else:
            missing.append(row)
    if missing:
        started = time.perf_counter()
        measure = missing[0].experiment.level.measure
        plan = {name: measure[name] for name in ("n_trials", "max_s", "n_one_by_one")}
        found = measure_point([(row.cell, row.experiment) for row in missing], host, **plan)
        wall_s = time.perf_counter() - started
        yield from (row.written(found[row.cell], wall_s) for row in missing)


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    with chdir(ROOT):
        with refusals():
            asked = rows(arguments)
        console.show(measure(asked), ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
