"""One run for each grid, offline unless asked otherwise, nothing when disabled; the only importer of wandb."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline import ROOT, hardware, metrics
from pipeline.config import Experiment, Tracking
from pipeline.judgement import Gate
from pipeline.reachable import no_answer
from pipeline.record import Record, path_of, write

if TYPE_CHECKING:
    import wandb

TRACKIO = "trackio"  # the name of its package, of the extra that brings it, and of its configuration
LONGEST_TAG, LONGEST_NAME = 64, 128


def check(tracking: Tracking) -> None:
    """Raises ValueError where a run should be followed and cannot be."""
    if tracking.mode == "disabled":
        return
    package, how = (TRACKIO, _extra(TRACKIO)) if tracking.name == TRACKIO else ("wandb", "wandb")
    if not _installed(package):
        disabled = "tracking=disabled, or after"
        raise ValueError(f"tracking={tracking.name}: {package} is not installed; valid: {disabled} `pip install {how}`")


def require(package: str, extra: str) -> None:
    """Raises ValueError, naming the extra that brings it, where a package is not installed."""
    if not _installed(package):
        raise ValueError(f"{package} is not installed; valid: after `pip install {_extra(extra)}`")


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # without origin it is a folder of runs, not the package


def _extra(name: str) -> str:
    return f"-e '.[{name}]'"


class Run(Protocol):
    """A started run, whoever keeps it."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    def log(self, row: metrics.Row) -> None: ...

    def summarise(self, values: metrics.Row) -> None:
        """What stands for the run as a whole, a later value in place of an earlier one."""

    def attach(self, kind: str, name: str, files: Mapping[str, bytes]) -> None:
        """Files by name, as one artifact; there is at least one."""


class Tracker:
    """Follows one grid; without a run it does nothing."""

    def __init__(self, run: Run | None = None, several_batches: bool = False) -> None:
        self._run = run
        self._several_batches = several_batches
        self._records: list[Record] = []

    @property
    def path(self) -> Path | None:
        return self._run.path if self._run else None

    def log(self, record: Record) -> None:
        """Measured now or before: the run shows the whole grid."""
        if self._run:
            self._records.append(record)
            for row in [metrics.cell_row(record, self._several_batches), *metrics.step_rows(record)]:
                self._run.log(row)
            self._run.summarise(metrics.headlines(record) | metrics.counts(self._records))

    def attach(self) -> None:
        """The records as they are on disk, and the figures drawn from them."""
        if self._run and self._records:
            records, figures = _files(self._records)
            _attach(self._run, "record", records)
            _attach(self._run, "figures", figures)


class TrainingTracker:
    """Follows the training of one seed; without a run it does nothing."""

    def __init__(self, run: Run | None) -> None:
        self._run = run

    def log(self, step: int, point: Mapping[str, float], learning_rate: float) -> None:
        if self._run:
            self._run.log(metrics.training_row(step, point, learning_rate))

    def judge(self, gates: list[Gate], accepted: bool) -> None:
        if self._run:
            self._run.summarise(metrics.gates(gates) | {"accepted": accepted})

    def attach(self, story: Path) -> None:
        """How the checkpoint came to be; its weights are in git."""
        if self._run:
            _attach(self._run, "training", {story.name: story.read_bytes()})


@contextmanager
def track(experiment: Experiment) -> Iterator[Tracker]:
    cells = experiment.cells()
    cell = cells[0]
    with _followed(
        experiment.tracking,
        metrics.CELL_AXES,
        group=f"{cell.level}-{experiment.profile.name}",
        job_type=cell.level,
        name="-".join([cell.model, *cell.technique.split(), cell.workload]),
        tags=(cell.level, cell.model, experiment.strategy.name, cell.workload, cell.device, cell.dtype),
        config=experiment.model_dump(exclude={"tracking", "results_dir"}),
    ) as run:
        tracker = Tracker(run, several_batches=len({cell.batch for cell in cells}) > 1)
        yield tracker
        tracker.attach()


@contextmanager
def track_training(tracking: Tracking, model: str, seed: int, config: dict[str, Any]) -> Iterator[TrainingTracker]:
    with _followed(
        tracking,
        metrics.TRAINING_AXES,
        group=f"train-{model}",
        job_type="train",
        name=f"{model}-seed{seed}",
        tags=("train", model),
        config=config | {"seed": seed},
    ) as run:
        yield TrainingTracker(run)


@contextmanager
def _followed(
    tracking: Tracking, axes: Mapping[str, str], *, tags: tuple[str, ...], **named: Any
) -> Iterator[Run | None]:
    """A started run; marked as failed where its block raises."""
    if tracking.mode == "disabled":
        yield None
        return
    named["config"] |= {"hardware_id": hardware.hardware_id()}
    named["tags"] = [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags)]
    if tracking.name == TRACKIO:
        from pipeline import trackio_runs

        with trackio_runs.started(tracking.project, **named) as kept:
            yield kept
    else:
        with _in_wandb(tracking, axes, **named) as run:
            yield run


@contextmanager
def _in_wandb(tracking: Tracking, axes: Mapping[str, str], **named: Any) -> Iterator[Run]:
    """Its charts are drawn against `axes`."""
    folder = os.environ.get("WANDB_DIR", ROOT)
    with _start(tracking, dir=folder, project=tracking.project, **named) as run:
        for axis in sorted(set(axes.values())):
            run.define_metric(axis, hidden=True, summary="none")
        for section, axis in axes.items():
            run.define_metric(f"{section}*", step_metric=axis, summary=metrics.SUMMARY_OVER[axis])
        yield _WandbRun(run)


def _start(tracking: Tracking, **named: Any) -> wandb.Run:
    """Online where a server answers and knows us, else offline; never asks."""
    # Else wandb would report errors and usage of its own, also from offline runs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if tracking.mode == "online":
        why_not = _why_not_online(tracking.timeout_s)
        try:
            if not why_not:
                return _init("online", tracking.timeout_s, **named)
        except wandb.Error as error:
            why_not = _first_line(error)
        print(f"tracking=online: {why_not}; following offline, `wandb sync` sends it later", file=sys.stderr)
    return _init("offline", tracking.timeout_s, **named)


def _init(mode: Literal["online", "offline"], timeout_s: float, **named: Any) -> wandb.Run:
    """Neither the environment, nor the command line, nor code, packages or repository are collected: they may hold
    secrets."""
    import wandb

    quiet = wandb.Settings(
        silent=True,
        console="off",
        host="",
        disable_git=True,
        disable_code=True,
        label_disable=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_viewer=True,
        x_save_requirements=False,
        init_timeout=timeout_s,
        finish_timeout=10 * timeout_s,
    )
    return wandb.init(mode=mode, settings=quiet, **named)


def _why_not_online(timeout_s: float) -> str:
    """Empty where a server answers and somebody is logged in. wandb itself would wait longer, at its end too."""
    import wandb

    url = wandb.setup().settings.base_url
    try:
        return no_answer(url, timeout_s) or ("" if wandb.login(prompt=False, verify=False) else "nobody is logged in")
    except wandb.Error as error:
        return _first_line(error)


def account(timeout_s: float = 6) -> tuple[str, str]:
    """(entity, why nothing can be published): the second is empty where a server answers and somebody is logged in."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    why_not = _why_not_online(timeout_s)
    entity = os.environ.get("WANDB_ENTITY", "")
    return entity or ("" if why_not else wandb.Api().default_entity or ""), why_not


@contextmanager
def answered() -> Iterator[None]:
    """Raises ValueError, one line, for what W&B answers as an error."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # is no wandb.Error

    try:
        yield
    except (wandb.Error, WandbApiFailedError) as error:
        raise ValueError(f"W&B: {_first_line(error)}") from None


def folder() -> Path:
    """Where runs lie that were not sent."""
    return Path(os.environ.get("WANDB_DIR", ROOT)) / "wandb"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _files(records: list[Record]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Record files and figures by name, from a folder with these records alone. The figures import matplotlib."""
    from pipeline.findings import evidence
    from pipeline.report import drawing
    from pipeline.report.tokens import figures

    with TemporaryDirectory() as folder:
        results = Path(folder)
        for record in records:
            write(record, path_of(record.cell, results, record.environment["hardware_id"]))
        written = {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.rglob("*.json"))}
        rows = evidence.load(results)
    drawn = [*figures.of_setting(rows, evidence.labels(rows)), *figures.of_technique(rows)]
    return written, {f"{name}.png": drawing.save(figure, "png")["png"] for name, _, figure in drawn}


def _attach(run: Run, kind: str, files: Mapping[str, bytes]) -> None:
    """The name stays from run to run, so that what is measured anew is another version of it."""
    if files:
        run.attach(kind, re.sub(r"[^\w.-]+", "-", f"{kind}-{run.name}")[:LONGEST_NAME], files)


@dataclass(frozen=True)
class _WandbRun:
    run: wandb.Run

    @property
    def name(self) -> str:
        return str(self.run.name)

    @property
    def path(self) -> Path:
        return Path(self.run.dir).parent

    def log(self, row: metrics.Row) -> None:
        self.run.log(row)

    def summarise(self, values: metrics.Row) -> None:
        self.run.summary.update(values)

    def attach(self, kind: str, name: str, files: Mapping[str, bytes]) -> None:
        """Copies lie in the folder of the run: it can be synced later, and wandb keeps nothing in the user's home."""
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for file, content in files.items():
            path = self.path / kind / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            artifact.add_file(str(path), file, policy="immutable", skip_cache=True)
        try:
            self.run.log_artifact(artifact)
        except wandb.Error as error:  # online, and the server has gone meanwhile
            print(f"W&B: {_first_line(error)}; {kind} stays in {self.path / kind}", file=sys.stderr)
