"""What the order of keys and values in memory costs: results/layout/HARDWARE_ID.json. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline import record
from pipeline.record import Interval

FOLDER = "layout"
REFERENCE, AGAIN = "heads_first", "heads_first_again"  # what each ratio is to, and the same once more: the noise


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Plan(_Frozen):
    """What is measured; the shapes are those of conf/model/bench.yaml and bench_gqa.yaml, one sequence in float32."""

    n_layers: int = 8
    n_heads: int = 12
    n_kv_heads: tuple[int, ...] = (12, 4)
    head_dim: int = 64
    seq_len: tuple[int, ...] = (1024, 4096, 8192)
    page_size: int = 16
    n_appends: int = 16  # in each trial
    n_steps: int = 2  # of attention in each trial
    n_trials: int = 16
    max_s: float = 20.0  # of each shape and length; trials end early
    n_bootstrap: int = 2000
    seed: int = 0


class Timed(_Frozen):
    """One layout doing one job, all layers; `ratio` is to heads first, trial by trial."""

    seconds: list[float]  # of one token, one for each trial
    ratio: Interval


class Point(_Frozen):
    """All layouts at one length: `append` writes one token, `attend` reads all for one query."""

    n_kv_heads: int
    seq_len: int
    append: dict[str, Timed]
    attend: dict[str, Timed]


class Layouts(_Frozen):
    schema_version: Literal[1] = 1
    fingerprint: str
    environment: dict[str, Any]  # hardware identity, versions, threads
    plan: Plan
    points: list[Point]


def path_of(results_dir: Path, hardware_id: str) -> Path:
    return results_dir / FOLDER / f"{hardware_id}.json"


def read(path: Path) -> Layouts:
    """Raises ValueError, naming the file, where it is something else."""
    return record.read_as(Layouts, path, "delete it to measure again")


def read_all(results_dir: Path) -> list[Layouts]:
    """Of every machine."""
    return [read(path) for path in sorted((results_dir / FOLDER).glob("*.json"))]
