"""A grid of cells in one process: what is already measured is kept, the rest is measured, one file each."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
from filelock import FileLock, Timeout

from pipeline import ROOT, hardware, record
from pipeline.config import Experiment
from pipeline.fingerprint import fingerprint, versions
from pipeline.record import Cell, Record
from pipeline.tracking import Tracker, track


@dataclass(frozen=True)
class Done:
    """One cell of the grid and where its record lies."""

    record: Record
    path: Path
    reused: bool


@dataclass(frozen=True)
class Grid:
    cells: list[Done]
    removed: list[Path]
    tracking_path: Path | None


def run_grid(experiment: Experiment, announce: Callable[[Done], None]) -> Grid:
    """Measure what has no record with this fingerprint; raises ValueError, before any work, on a corrupt record."""
    cells = experiment.cells()
    folder = _path(experiment, cells[0]).parent
    with _locked(experiment.results_path / ".locks" / f"{experiment.level.name}-{experiment.strategy.name}.lock"):
        for half_written in folder.glob(".*.tmp"):
            half_written.unlink()
        existing = {path: record.read(path) for path in sorted(folder.glob("*.json"))}
        fingerprints = {cell: _fingerprint(experiment, cell) for cell in cells}
        kept = {
            cell: old
            for cell in cells
            if (old := existing.get(_path(experiment, cell)))
            and old.fingerprint == fingerprints[cell]
            and old.status != "error"
        }
        with track(experiment) if len(kept) < len(cells) else nullcontext(Tracker()) as tracker:
            done = [
                _run_cell(experiment, cell, fingerprints[cell], kept.get(cell), tracker, announce) for cell in cells
            ]
        removed = _prune(experiment, existing) if experiment.prune else []
    return Grid(done, removed, tracker.path)


def _run_cell(
    experiment: Experiment,
    cell: Cell,
    digest: str,
    kept: Record | None,
    tracker: Tracker,
    announce: Callable[[Done], None],
) -> Done:
    done = Done(kept or _measure(experiment, cell, digest), _path(experiment, cell), reused=kept is not None)
    if not done.reused:
        record.write(done.record, done.path)
        tracker.log(done.record)
    announce(done)
    return done


def _measure(experiment: Experiment, cell: Cell, digest: str) -> Record:
    """A record whatever happens inside the cell: a failure becomes a row with its reason and what would help."""
    started = time.perf_counter()
    measured: dict[str, Any] = {}
    status: Literal["ok", "error", "skipped"] = "ok"
    reason = remedy = ""
    try:
        result = hydra.utils.instantiate(experiment.level.measure)(cell, experiment)
        measured = {"predicted": result.predicted, "cost": result.cost, "quality": result.quality}
        if result.skipped:
            status, reason, remedy = "skipped", result.skipped, result.remedy
    except Exception as error:
        status, reason, remedy = "error", _reason(error), _remedy(error)
    return Record(
        cell=cell,
        status=status,
        reason=reason,
        remedy=remedy,
        fingerprint=digest,
        config=experiment.resolved,
        environment={
            "hardware_id": hardware.hardware_id(),
            "hardware": hardware.identity(),
            "versions": versions(),
            "n_threads": experiment.n_threads,
        },
        wall_s=time.perf_counter() - started,
        **measured,
    )


def _reason(error: Exception) -> str:
    """Class, message and the last line of this project that it passed, as one line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(ROOT)]
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    place = f" ({Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _remedy(error: Exception) -> str:
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return "a shorter workload.seq_len, a smaller workload.batch, or a smaller dtype"
    if isinstance(error, FloatingPointError):
        return "a wider dtype: dtype=float32"
    return "run this cell alone to see whether it is the cell or the machine; the error is in the code it names"


def _prune(experiment: Experiment, existing: dict[Path, Record]) -> list[Path]:
    """Remove the records of this workload that are not in this grid; other workloads and machines keep theirs."""
    grid = {_path(experiment, cell) for cell in experiment.cells()}
    stale = [
        path for path, old in existing.items() if old.cell.workload == experiment.workload.name and path not in grid
    ]
    for path in stale:
        path.unlink()
    return stale


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process per folder: a second one waits, and then finds the records of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another run that holds {path}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _path(experiment: Experiment, cell: Cell) -> Path:
    return record.path_of(cell, experiment.results_path, hardware.hardware_id())


def _fingerprint(experiment: Experiment, cell: Cell) -> str:
    return fingerprint(experiment.resolved, cell, hardware.identity())
