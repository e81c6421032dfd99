"""One cell in, one record out; a grid of lengths in one process.

python -m pipeline.run strategy=attention_sink workload.seq_len=512
Paths are relative to the project's root, wherever the command is given.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, chdir

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline import ROOT, sweep
from pipeline.config import Experiment
from pipeline.refusals import COMPOSING, CONF, refusals


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> None:
    """Measure the grid, show the table, say where the records are."""
    from pipeline import console, grid

    with ExitStack() as stack:
        with refusals():
            experiment = Experiment.from_hydra(cfg)
            plan = stack.enter_context(grid.planned(experiment))
        title = f"{experiment.strategy.variant} on {experiment.model.label}"
        with console.progress(len(plan.fingerprints), title) as announce:
            done = grid.run_grid(plan, announce)
    console.show(done, ROOT)
    # In a sweep and in a stage the rest goes on; there `pipeline.gates --check` decides.
    if done.all_failed and not experiment.prune and HydraConfig.get().mode is RunMode.RUN:
        raise SystemExit(1)


def _check(arguments: list[str]) -> None:
    """What Hydra would answer with a traceback, and every job of a sweep before the first one works."""
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_args(arguments)
    commands = [f"--{name}" for name in ("run", "multirun", "cfg", "info", "shell_completion") if vars(given)[name]]
    if len(commands) > 1:
        raise ValueError(f"{' '.join(commands)}: cannot be had together; valid: one of them")
    if given.resolve and not (given.cfg or given.help):
        raise ValueError("--resolve: there is nothing to resolve; valid: together with --cfg or --help")
    if given.multirun:
        sweep.experiments(given.overrides)


def main() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on, instead of printing them over several lines
    try:
        with chdir(ROOT):
            with refusals():
                _check(sys.argv[1:])
            with refusals(COMPOSING):  # an error of ours while measuring is no bad input, and keeps its traceback
                _job()
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept, the same command continues", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
