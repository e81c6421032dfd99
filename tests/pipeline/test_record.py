"""A record is either the old one or the whole new one, and a corrupt one is named."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time

import pytest

from pipeline import record
from pipeline.record import Cell, Interval, Record
from tests.pipeline.report import factory

CELL = Cell(
    level="token",
    model="tiny",
    strategy="full",
    weights="none",
    engine="ours",
    workload="cost",
    seq_len=512,
    batch=1,
    n_new_tokens=8,
    kv_budget=None,
    dtype="float32",
    device="cpu",
    seed=0,
)
RECORD = Record(cell=CELL, status="ok", fingerprint="f", config={}, environment={}, wall_s=1.0)
WRITE_FOREVER = """
import sys; from pathlib import Path; from pipeline import record
path = Path(sys.argv[1]); old = record.read(path); print("started", flush=True)
while True:
    record.write(old.model_copy(update={"reason": "x" * 200_000}), path)
"""


def test_what_is_written_is_what_is_read(tmp_path):
    path = record.path_of(CELL, tmp_path, "machine")
    record.write(RECORD, path)
    assert record.read(path) == RECORD
    assert record.read_all(tmp_path) == [RECORD]
    assert path.relative_to(tmp_path).parts[:3] == ("token", "full", "machine")


def test_costs_that_were_measured_before_there_was_a_link_are_read():
    cost = factory.timed("full").model_dump()["cost"]
    del cost["link_bandwidth_bytes_per_s"]
    assert record.Cost.model_validate(cost).link_bandwidth_bytes_per_s is None


def test_undefined_numbers_survive():
    interval = Interval(estimate=math.inf, low=math.nan, high=math.inf, n=1)
    again = Interval.model_validate_json(interval.model_dump_json())
    assert math.isnan(again.low)
    assert again.high == math.inf


@pytest.mark.parametrize("field", sorted(set(Cell.model_fields) - {"level", "strategy"}))
def test_cells_that_differ_have_files_that_differ(field):
    other = CELL.model_copy(update={field: 7 if isinstance(getattr(CELL, field), int | None) else "other"})
    assert other.slug != CELL.slug


def test_killed_write_leaves_a_whole_record(tmp_path):
    path = tmp_path / "cell.json"
    record.write(RECORD, path)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout and writer.stdout.readline() == "started\n"
        time.sleep(random.uniform(0.0, 0.1))
        writer.kill()
        writer.wait()
        assert record.read(path).cell == CELL


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "not json", '{"schema_version": 99}'])
def test_corrupt_record_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "cell.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"cell\.json") as raised:
        record.read(path)
    assert "\n" not in str(raised.value)
