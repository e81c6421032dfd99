"""A grid of cells in one process: what is already measured is kept, the rest is measured, one file each."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from filelock import BaseFileLock, FileLock, Timeout

from pipeline import ROOT, checks, hardware, models, record, tracking
from pipeline.config import Experiment
from pipeline.fingerprint import FIRST_PARTY, fingerprint
from pipeline.record import Cell, Record
from pipeline.tracking import Tracker, track

if TYPE_CHECKING:
    from pipeline.levels.measured import Measured


OK = {"status": "ok"}


@dataclass(frozen=True)
class Done:
    """One cell of the grid and where its record lies."""

    record: Record
    path: Path
    reused: bool


@dataclass(frozen=True)
class Plan:
    """What is to be had, what is there, and what of that is kept."""

    experiment: Experiment
    fingerprints: dict[Cell, str]
    existing: dict[Path, Record]
    outdated: list[Path]  # what older versions wrote counts as not measured
    kept: dict[Cell, Record]

    @property
    def is_done(self) -> bool:
        return len(self.kept) == len(self.fingerprints)


@dataclass(frozen=True)
class Grid:
    cells: list[Done]
    removed: list[Path]
    tracking_path: Path | None

    @property
    def all_failed(self) -> bool:
        return all(done.record.status == "error" for done in self.cells)


@contextmanager
def planned(experiment: Experiment) -> Iterator[Plan]:
    """The plan, with its folder locked. Raises ValueError for a corrupt record and where nothing can be written."""
    fingerprints = {cell: fingerprint(experiment.resolved, cell, hardware.identity()) for cell in experiment.cells()}
    folder = _path(experiment, next(iter(fingerprints))).parent
    with _locked(experiment, folder):
        for half_written in folder.glob(".*.tmp"):
            half_written.unlink()
        existing, outdated = read(folder)
        kept = {
            cell: old
            for cell, digest in fingerprints.items()
            if (old := existing.get(_path(experiment, cell))) and _holds(old, digest)
        }
        plan = Plan(experiment, fingerprints, existing, outdated, kept)
        if not plan.is_done:
            tracking.check(experiment.tracking)
            checks.check_shape(experiment)
        yield plan


def read(folder: Path) -> tuple[dict[Path, Record], list[Path]]:
    """Records, and files that an older version wrote."""
    found: dict[Path, Record] = {}
    outdated = []
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = record.read(path)
        except record.OutdatedRecord:
            outdated.append(path)
    if outdated:
        print(f"{folder}: {len(outdated)} records of an older version count as not measured", file=sys.stderr)
    return found, outdated


def run_grid(plan: Plan, announce: Callable[[Done], None]) -> Grid:
    """Measure what has no record with its fingerprint."""
    with nullcontext(Tracker()) if plan.is_done else track(plan.experiment) as tracker:
        done = [_run_cell(plan, cell, tracker, announce) for cell in plan.fingerprints]
    wanted = {_path(plan.experiment, cell): cell for cell in plan.fingerprints}
    removed = prune(plan.existing, plan.outdated, wanted) if plan.experiment.prune else []
    return Grid(done, removed, tracker.path)


def _run_cell(plan: Plan, cell: Cell, tracker: Tracker, announce: Callable[[Done], None]) -> Done:
    kept = plan.kept.get(cell)
    measured = kept or _measure(plan.experiment, cell, plan.fingerprints[cell])
    done = Done(measured, _path(plan.experiment, cell), reused=kept is not None)
    if not done.reused:
        record.write(done.record, done.path)
    tracker.log(done.record)
    announce(done)
    return done


def _measure(experiment: Experiment, cell: Cell, digest: str) -> Record:
    """A record whatever happens inside the cell: a failure becomes a row with its reason and what would help."""
    started = time.perf_counter()
    try:
        result: Measured = hydra.utils.instantiate(experiment.level.measure)(cell, experiment)
        told = {name: getattr(result, name) for name in ("predicted", "cost", "quality", "throughput")}
        told |= {"status": "skipped", "reason": result.skipped, "remedy": result.remedy} if result.skipped else OK
    except Exception as error:
        told = failure(error)
    return made(experiment, cell, digest, time.perf_counter() - started, **told)


def made(experiment: Experiment, cell: Cell, digest: str, wall_s: float, **told: Any) -> Record:
    """The record of a cell on this machine; `told` are its status and what was measured."""
    model = experiment.model
    return Record(
        cell=cell,
        fingerprint=digest,
        config=experiment.resolved,
        environment={
            "hardware_id": hardware.hardware_id(),
            "hardware": hardware.identity(),
            "model": models.identity(model.source, model.path, model.revision),
            "versions": hardware.versions(),
            "n_threads": experiment.n_threads,
        },
        wall_s=wall_s,
        **told,
    )


def kept(path: Path, digest: str) -> Record | None:
    """The record that is there, if it still holds. Raises ValueError for a corrupt one."""
    try:
        found = record.read(path) if path.exists() else None
    except record.OutdatedRecord:
        return None
    return found if found and _holds(found, digest) else None


def _holds(found: Record, digest: str) -> bool:
    return found.status == "ok" and found.fingerprint == digest


def failure(error: Exception) -> dict[str, Any]:
    """Status, reason and remedy of a cell in which this was raised."""
    if _needs_what_is_not_here(error):
        reason, remedy = _told(error)
        return {"status": "skipped", "reason": reason, "remedy": remedy}
    return {"status": "error", "reason": _reason(error), "remedy": _remedy(error)}


def _needs_what_is_not_here(error: Exception) -> bool:
    """A package or a device that is missing is no failure; a module of our own that is missing is one."""
    ours = isinstance(error, ImportError) and (error.name or "").partition(".")[0] in FIRST_PARTY
    return isinstance(error, ImportError | NotImplementedError) and not ours


def _told(error: Exception) -> tuple[str, str]:
    """`why; valid: what` of a technique's own words as reason and remedy."""
    reason, _, remedy = " ".join(str(error).split()).partition("; valid: ")
    return reason, remedy or (f"pip install {error.name}" if isinstance(error, ImportError) else "another device")


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


def prune(existing: Mapping[Path, Record], outdated: Sequence[Path], wanted: Mapping[Path, Cell]) -> list[Path]:
    """Remove the records that differ from what is wanted in its own dimensions only: length, batch, budget, seed; and
    what older versions left.
    """
    owned = {_owner(cell) for cell in wanted.values()}
    stale = [path for path, old in existing.items() if path not in wanted and _owner(old.cell) in owned]
    stale += [path for path in outdated if path not in wanted]
    for path in stale:
        path.unlink()
    return stale


def prune_level(experiment: Experiment, done: Sequence[Done]) -> list[Path]:
    """Over all folders of a level, by the stage that owns it whole."""
    wanted = {item.path: item.record.cell for item in done}
    folders = sorted(experiment.results_path.glob(f"{experiment.level.name}/*/{hardware.hardware_id()}"))
    return [path for folder in folders for path in prune(*read(folder), wanted)]


def _owner(cell: Cell) -> tuple[str, ...]:
    return cell.workload, cell.model, cell.weights, cell.engine, cell.dtype, cell.device


@contextmanager
def _locked(experiment: Experiment, folder: Path) -> Iterator[None]:
    """One process per folder: a second one waits, and then finds the records of the first."""
    locks = experiment.results_path / ".locks"
    lock = FileLock(locks / f"{experiment.level.name}-{experiment.strategy.name}.lock")
    try:
        for needed in (locks, folder):
            needed.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        _acquire(lock)
    except OSError as error:
        raise ValueError(
            f"results_dir={experiment.results_dir}: {error.strerror}: {error.filename}; "
            "valid: a folder that can be written"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another run that holds {lock.lock_file}", file=sys.stderr, flush=True)
        lock.acquire()


def _path(experiment: Experiment, cell: Cell) -> Path:
    return record.path_of(cell, experiment.results_path, hardware.hardware_id())
