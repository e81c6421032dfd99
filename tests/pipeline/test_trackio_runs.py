"""What trackio is told is what a record holds; it asks no server, and is never needed."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import ROOT, metrics
from tests.conftest import CELLS, SMALL
from tests.pipeline.report import factory
from tests.pipeline.test_imports import PIPELINE, packages
from tests.pipeline.test_tracking import environment

PROGRAM = """
import socket, sys
from hydra import compose, initialize_config_dir
from pipeline import tracking
from pipeline.config import Experiment
from pipeline.record import Record
from pipeline.refusals import CONF

def connect(self, address):
    print("connects to", address)

socket.socket.connect = connect
with initialize_config_dir(str(CONF), version_base="1.3"):
    experiment = Experiment.from_hydra(compose("config", ["tracking=trackio", "tracking.project=a-project"]))
with tracking.track(experiment) as tracker:
    tracker.log(Record.model_validate_json(sys.stdin.read()))
"""
needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="the extra trackio is not here")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of one grid, followed in a process of its own: trackio reads its folder when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    record = factory.timed("h2o").model_copy(update={"quality": factory.quality(0.1)})
    told = environment(folder, TRACKIO_DIR=str(folder / "kept"), PYTHONPATH=":".join([str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, env=told, input=record.model_dump_json(), capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", ""), "nothing is said, and nobody is called"
    return folder / "kept" / "a-project.db"


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    return sqlite3.connect(database).execute(query).fetchall()


@needs_trackio
def test_every_logged_row_is_the_one_of_the_record(database: Path) -> None:
    record = factory.timed("h2o").model_copy(update={"quality": factory.quality(0.1)})
    logged = [json.loads(row) for (row,) in rows(database, "SELECT metrics FROM metrics ORDER BY step")]
    last = metrics.headlines(record) | metrics.counts([record])
    assert logged == [metrics.cell_row(record), *metrics.step_rows(record), last]


@needs_trackio
def test_a_run_says_what_it_is_and_nothing_of_the_machine_is_collected(database: Path) -> None:
    ((name, config),) = rows(database, "SELECT run_name, config FROM configs")
    told = json.loads(config)
    assert name == "tiny-full-standard" and told["job_type"] == "token"
    assert told["tags"][:2] == ["token", "tiny"] and told["strategy"]["name"] == "full"
    assert rows(database, "SELECT * FROM system_metrics") == []


@needs_trackio
def test_records_and_figures_are_attached(database: Path) -> None:
    kinds = dict(rows(database, "SELECT type, name FROM artifacts"))
    assert kinds == {"record": "record-tiny-full-standard", "figures": "figures-tiny-full-standard"}
    manifests = "".join(str(row) for row in rows(database, "SELECT manifest FROM artifact_versions"))
    assert "token/h2o/" in manifests and ".png" in manifests


def test_without_trackio_it_is_refused_before_any_work(main: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    refused = main(*SMALL[:3], *SMALL[4:], f"{CELLS}.instant", "tracking=trackio")
    assert refused.code == 2 and not list(tmp_path.glob("results/*/*/*/*.json"))
    how = "valid: tracking=disabled, or after `pip install -e '.[trackio]'`"
    assert refused.err == f"tracking=trackio: trackio is not installed; {how}\n"


def test_one_file_imports_trackio_and_only_tracking_imports_that_file() -> None:
    assert [path.name for path in PIPELINE if "trackio" in packages(path)] == ["trackio_runs.py"]
    assert [path.name for path in PIPELINE if "import trackio_runs" in path.read_text()] == ["tracking.py"]
