"""One cell in, one record out; a grid of lengths in one process.

python -m pipeline.run strategy=attention_sink workload.seq_len=512
Paths are relative to the project's root, wherever the command is given.
"""

from __future__ import annotations

import os
import sys
from contextlib import chdir

import hydra
from omegaconf import DictConfig

from pipeline import ROOT
from pipeline.config import Experiment
from pipeline.refusals import CONF, refusals


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> None:
    with refusals():
        run(Experiment.from_hydra(cfg))


def run(experiment: Experiment) -> None:
    """Measure the grid, show the table, say where the records are."""
    from pipeline import console, grid

    title = f"{experiment.strategy.name} on {experiment.model.name}"
    with console.progress(len(experiment.cells()), title) as announce:
        done = grid.run_grid(experiment, announce)
    console.show(done, ROOT)


def main() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on, instead of printing them over several lines
    try:
        with chdir(ROOT), refusals():
            _job()
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept, the same command continues", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
