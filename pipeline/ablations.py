"""Quality over budgets, and along each axis of a technique: every point of conf/ablation.yaml, in one process.

python -m pipeline.ablations              measures what has no record yet
python -m pipeline.ablations seed=1       whatever is given changes all points
python -m pipeline.ablations prune=true   and removes what is no point any more; for the stage that owns the folder
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, chdir

from omegaconf import OmegaConf

from pipeline import ROOT, console, grid, sweep
from pipeline.config import Experiment
from pipeline.grid import Done, Grid
from pipeline.refusals import CONF, refusals

POINTS = CONF / "ablation.yaml"


def points(overrides: Sequence[str]) -> list[Experiment]:
    """Every point once. Raises ValueError for the first that is refused, before any is measured."""
    listed = OmegaConf.load(POINTS)
    lines = ([*shlex.split(listed.shared), *shlex.split(line), *overrides] for line in listed.grids)
    found = (experiment for line in lines for experiment in sweep.experiments(line))
    return list({tuple(experiment.cells()): experiment for experiment in found}.values())


def measure(experiments: Sequence[Experiment]) -> Grid:
    """What has no record is measured, point by point; only then is what is no point removed, from all folders."""
    n_cells = sum(len(experiment.cells()) for experiment in experiments)
    with console.progress(n_cells, "ablations") as announce:
        done = [cell for experiment in experiments for cell in _measured(experiment, announce)]
    removed = grid.prune_level(experiments[0], done) if experiments[0].prune else []
    return Grid(done, removed, None)


def _measured(experiment: Experiment, announce: console.Announce) -> list[Done]:
    """Its folder also holds other points, so that this one alone must not prune it."""
    with ExitStack() as stack:
        with refusals():
            plan = stack.enter_context(grid.planned(experiment.model_copy(update={"prune": False})))
        return grid.run_grid(plan, announce).cells


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    with chdir(ROOT):
        with refusals():
            experiments = points(arguments)
        console.show(measure(experiments), ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
