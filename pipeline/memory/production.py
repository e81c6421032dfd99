"""Caches at production scale: what is asked (conf/production.yaml), and what results/memory.json answers. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline import ROOT, plans, record
from pipeline.plans import Frozen

PLAN = ROOT / "conf" / "production.yaml"
FILE = "memory.json"


class Holding(Frozen):
    title: str
    options: str  # of python -m pipeline.memory


class Asked(Holding):
    assumes: str


class Points(Frozen):
    """Several ways to hold one prompt."""

    title: str  # of the model
    seq_len: int
    points: list[Asked]


class Heads(Frozen):
    title: str
    options: str
    n_kv_heads: list[int]
    seq_len: list[int]


class Batched(Frozen):
    seq_len: int
    batch: int


class Plan(Frozen):
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


class Held(Frozen):
    """One way to hold the caches of one model: bytes of the kept tokens of one sequence, at each length of the plan."""

    title: str
    kept: list[int]
    kept_batched: int | None
    refused: str  # why nothing is held this way; empty where it is


class Shape(Frozen):
    model: str
    title: str
    n_layers: int
    weight_bytes: int
    kv_bytes_per_token: int  # nothing compressed, one sequence, all layers
    held: list[Held]


class HeadCount(Frozen):
    n_kv_heads: int
    weight_bytes: int
    kept: list[int]  # one sequence, at each length
    largest_batch: list[int]  # on one device, beside the weights


class Point(Frozen):
    title: str
    assumes: str
    options: str
    kept: int  # one sequence
    held: int
    weight_bytes: int
    largest_batch: int  # on all devices together
    largest_batch_of_one: int


class Production(Frozen):
    schema_version: Literal[1] = 1
    plan: Plan
    shapes: list[Shape]
    heads: list[HeadCount]
    scenarios: list[Point]
    stack: list[Point]


def plan(path: Path = PLAN) -> Plan:
    """Raises ValueError, naming field and file, for what is no plan."""
    return plans.read(Plan, path)


def read(results_dir: Path) -> Production | None:
    """None where nothing was computed. Raises ValueError, naming the file, where it is something else."""
    path = results_dir / FILE
    return record.read_as(Production, path, "delete it to compute again") if path.exists() else None
