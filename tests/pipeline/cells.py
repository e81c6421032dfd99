"""Measuring functions that end in a known way, named by `level.measure._target_` in tests of the grid."""

from __future__ import annotations

import time

from pipeline.config import Experiment
from pipeline.levels.measured import Measured
from pipeline.record import Cell


def instant(cell: Cell, experiment: Experiment) -> Measured:
    return Measured()


def slow(cell: Cell, experiment: Experiment) -> Measured:
    time.sleep(1)
    return instant(cell, experiment)


def too_long(cell: Cell, experiment: Experiment) -> Measured:
    return Measured(skipped="takes too long", remedy="be patient")


def out_of_memory_above_64(cell: Cell, experiment: Experiment) -> Measured:
    if cell.seq_len > 64:
        raise RuntimeError("DefaultCPUAllocator: can't allocate\nmemory")
    return instant(cell, experiment)


def not_a_number(cell: Cell, experiment: Experiment) -> Measured:
    raise FloatingPointError("logits hold NaN")
