"""Measuring functions that end in a known way, named by `level.measure._target_` in tests of the grid."""

from __future__ import annotations

import time
from types import SimpleNamespace

from pipeline.config import Experiment
from pipeline.record import Cell


def instant(cell: Cell, experiment: Experiment) -> SimpleNamespace:
    return SimpleNamespace(predicted=None, cost=None, quality=None, skipped="", remedy="")


def slow(cell: Cell, experiment: Experiment) -> SimpleNamespace:
    time.sleep(1)
    return instant(cell, experiment)


def too_long(cell: Cell, experiment: Experiment) -> SimpleNamespace:
    return SimpleNamespace(predicted=None, cost=None, quality=None, skipped="takes too long", remedy="be patient")


def out_of_memory_above_64(cell: Cell, experiment: Experiment) -> SimpleNamespace:
    if cell.seq_len > 64:
        raise RuntimeError("DefaultCPUAllocator: can't allocate\nmemory")
    return instant(cell, experiment)


def not_a_number(cell: Cell, experiment: Experiment) -> SimpleNamespace:
    raise FloatingPointError("logits hold NaN")
