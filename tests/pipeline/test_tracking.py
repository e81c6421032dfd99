"""W&B follows a grid without seeing more than the grid, and is never needed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pipeline import tracking
from tests.conftest import INSTANT
from tests.pipeline.test_record import RECORD


def when_flushed(folder: Path) -> bytes:
    """All that the run has written; its own process may take a moment after the end."""
    content, until = b"", time.monotonic() + 20
    while b"wall_s" not in content and time.monotonic() < until:
        content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
        time.sleep(0.05)
    return content


def test_disabled_tracking_needs_no_wandb(main, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    assert main(*INSTANT).code == 0


def test_offline_run_is_written_and_holds_no_secret(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "s3cr3t-value")
    monkeypatch.setattr(sys, "argv", ["run", "--password=s3cr3t-value"])
    with tracking.track(experiment(*INSTANT, "tracking=offline"), tmp_path) as tracker:
        tracker.log(RECORD)
    assert tracker.path and tracker.path.is_relative_to(tmp_path)
    assert b"wall_s" in when_flushed(tracker.path)
    assert b"s3cr3t-value" not in when_flushed(tracker.path)


@pytest.mark.slow
def test_online_without_a_server_falls_back_to_offline(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    this = experiment(*INSTANT, "tracking=online", "tracking.init_timeout_s=3")
    with pytest.warns(UserWarning, match="offline"), tracking.track(this, tmp_path) as tracker:
        tracker.log(RECORD)
    assert tracker.path and tracker.path.name.startswith("offline-run")
    assert not os.environ.get("WANDB_MODE")
