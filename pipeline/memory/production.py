"""Caches at production scale: what is asked (conf/production.yaml), and what results/memory.json answers. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

from pipeline import ROOT, record

PLAN = ROOT / "conf" / "production.yaml"
FILE = "memory.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Holding(_Frozen):
    title: str
    options: str  # of python -m pipeline.memory


class Asked(Holding):
    assumes: str


class Points(_Frozen):
    """Several ways to hold one prompt."""

    title: str  # of the model
    seq_len: int
    points: list[Asked]


class Heads(_Frozen):
    title: str
    options: str
    n_kv_heads: list[int]
    seq_len: list[int]


class Batched(_Frozen):
    seq_len: int
    batch: int


class Plan(_Frozen):
    dtype: str
    gpu_gb: float
    n_gpus: int
    n_new_tokens: int
    seq_len: list[int]
    batched: Batched
    models: list[str]
    holdings: list[Holding]
    heads: Heads
    scenarios: Points
    stack: Points


class Held(_Frozen):
    """One way to hold the caches of one model: bytes of the kept tokens of one sequence, at each length of the plan."""

    title: str
    kept: list[int]
    kept_batched: int | None
    refused: str  # why nothing is held this way; empty where it is


class Shape(_Frozen):
    model: str
    title: str
    n_layers: int
    weight_bytes: int
    kv_bytes_per_token: int  # nothing compressed, one sequence, all layers
    held: list[Held]


class HeadCount(_Frozen):
    n_kv_heads: int
    weight_bytes: int
    kept: list[int]  # one sequence, at each length
    largest_batch: list[int]  # on one device, beside the weights


class Point(_Frozen):
    title: str
    assumes: str
    options: str
    kept: int  # one sequence
    held: int
    weight_bytes: int
    largest_batch: int  # on all devices together
    largest_batch_of_one: int


class Production(_Frozen):
    schema_version: Literal[1] = 1
    plan: Plan
    shapes: list[Shape]
    heads: list[HeadCount]
    scenarios: list[Point]
    stack: list[Point]


def plan(path: Path = PLAN) -> Plan:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return Plan.model_validate(content)


def read(results_dir: Path) -> Production | None:
    """None where nothing was computed. Raises ValueError, naming the file, where it is something else."""
    path = results_dir / FILE
    return record.read_as(Production, path, "delete it to compute again") if path.exists() else None
