"""The only importer of wandb: one run for each grid, offline unless asked otherwise, nothing when disabled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import ROOT
from pipeline.config import Experiment
from pipeline.record import Record

if TYPE_CHECKING:
    import wandb


class Tracker:
    """Follows one grid; without a W&B run it does nothing."""

    def __init__(self, run: wandb.Run | None = None) -> None:
        self._run = run

    @property
    def path(self) -> Path | None:
        return Path(self._run.dir).parent if self._run else None

    def log(self, record: Record) -> None:
        if self._run:
            self._run.log(_row(record))
            self._run.summary[f"status/{record.cell.slug}"] = record.status


@contextmanager
def track(experiment: Experiment, folder: Path = ROOT) -> Iterator[Tracker]:
    if experiment.tracking.mode == "disabled":
        yield Tracker()
        return
    run = _start(experiment, folder)
    try:
        yield Tracker(run)
    finally:
        run.finish()


def _start(experiment: Experiment, folder: Path) -> wandb.Run:
    import wandb

    mode = experiment.tracking.mode
    try:
        return _init(experiment, folder, mode)
    except (wandb.errors.Error, OSError) as error:
        if mode == "offline":
            raise
        warnings.warn(f"tracking=online: {error}; following this run offline", stacklevel=2)
        return _init(experiment, folder, "offline")


def _init(experiment: Experiment, folder: Path, mode: Any) -> wandb.Run:
    import wandb

    # Neither the environment, nor the command line, nor the repository is collected: they may hold secrets.
    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        init_timeout=experiment.tracking.init_timeout_s,
    )
    return wandb.init(
        mode=mode,
        dir=folder,
        project=experiment.tracking.project,
        group=f"{experiment.level.name}-{experiment.profile.name}",
        job_type=experiment.level.name,
        name=f"{experiment.model.name}-{experiment.strategy.name}-{experiment.workload.name}",
        config=experiment.model_dump(exclude={"tracking", "results_dir"}),
        settings=quiet,
    )


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"seq_len": record.cell.seq_len, "batch": record.cell.batch, "wall_s": record.wall_s}
    if record.cost:
        arm = record.cost.technique
        row |= {"cost/ttft_s": arm.ttft_s_p50, "cost/tpot_s": arm.tpot_s_p50}
        row |= {"cost/tpot_ratio": record.cost.tpot_ratio.estimate, "cost/kv_bytes_held": arm.kv_bytes_held[-1]}
    for task in record.quality.tasks if record.quality else []:
        row[f"quality/{task.protocol}/{task.task}"] = task.accuracy
    if record.quality and record.quality.text:
        row["quality/text_nll"] = record.quality.text.nll
    return row
