"""All runs of the grids of `dvc repro`, synced with wandb's own client; what counts is what the server was told."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT, checkpoints, record, train
from pipeline.record import Record
from tests.pipeline import wandb_server
from tests.pipeline.run_file import WANDB, without_wandb
from tests.pipeline.test_tracking import KEY, environment, expected_row, expected_steps
from tests.pipeline.wandb_server import ServerRun

# What a user would change for a quick look: file -> what there is, what instead.
CHEAP = {
    "conf/config.yaml": [("profile: auto", "profile: smoke")],
    "conf/profile/smoke.yaml": [
        ("n_threads: null", "n_threads: 1"),
        (r"n_items: \d+", "n_items: 2"),
        (r"quality_seq_len: .*", "quality_seq_len: [96, 128]"),
    ],
    "dvc.yaml": [(r"strategy=glob\(.*?\)", "strategy=full,attention_sink")],
}
RUNS = [(strategy, load) for strategy in ("attention_sink", "full") for load in ("cost", "quality")]
# Gates, ablations and benchmark log no runs, and take minutes on any profile.
STAGE = "token"


def copy_of_the_project(folder: Path) -> None:
    """As git would give it, without records and lock, on the profile of seconds."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not re.match(r"results/|reports/|dvc\.lock", name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name, changes in CHEAP.items():
        content = (folder / name).read_text()
        for old, new in changes:
            content, n_changed = re.subn(old, new, content)
            assert n_changed == 1, f"{name}: {old}"
        (folder / name).write_text(content)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def stamp(story: Path) -> None:
    """Make the checkpoint the one that this code trains: training takes minutes, and is not what is asked here."""
    content = json.loads(story.read_text()) | {"inputs": checkpoints.inputs(train.configured([]))}
    story.write_text(json.dumps(content))


def dvc_repro(folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ours = environment(folder, PATH=path, PYTHONPATH="", WANDB_API_KEY=KEY, DVC_SITE_CACHE_DIR=str(folder / ".site"))
    ours = {name: value for name, value in ours.items() if name != "WANDB_DIR"} | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        ["dvc", "repro", STAGE], cwd=folder, env=ours, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def synced(folder: Path) -> dict[tuple[str, str], ServerRun]:
    """(strategy, workload) -> what a server was told."""
    with wandb_server.serving() as server:
        ours = environment(folder, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, WANDB_ERROR_REPORTING="false")
        runs = sorted(map(str, folder.glob("wandb/offline-run-*")))
        subprocess.run([WANDB, "sync", *runs], cwd=folder, env=ours, capture_output=True, timeout=120, check=True)
    assert not server.faults and len(server.runs) == len(runs)
    return {(run.told["tags"][2], run.told["tags"][3]): run for run in server.runs.values()}


def rows_of(one: Record) -> list[dict[str, object]]:
    return [expected_row(one), *expected_steps(one)]


@pytest.mark.slow
def test_all_runs_of_the_grids_arrive_as_they_were_measured(tmp_path):
    folder = tmp_path / "project"
    copy_of_the_project(folder)
    stamp(folder / "models/tiny/training.json")
    assert "models/tiny is up to date" in dvc_repro(folder)
    for written in ("wandb", "results", "reports"):
        assert not [
            path for path in (folder / written).rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
        ]
    arrived = synced(folder)
    assert sorted(arrived) == RUNS
    records = record.read_all(folder / "results")
    for (strategy, workload), run in arrived.items():
        own = [one for one in records if (one.cell.strategy, one.cell.workload) == (strategy, workload)]
        own.sort(key=lambda one: one.cell.seq_len)
        model = own[0].cell.model
        assert run.told["displayName"] == f"{model}-{strategy}-{workload}"
        assert (run.told["groupName"], run.told["jobType"]) == ("token-smoke", "token")
        assert run.told["tags"] == ["token", model, strategy, workload, "cpu", "float32"]
        history = [without_wandb(row) for _, row in sorted(run.history.items())]
        assert history == [row for one in own for row in rows_of(one)]
        assert run.summary["cells/ok"] == len(own) and run.is_complete
        files = {str(path.relative_to(folder / "results")): path.read_bytes() for path in paths(folder, own)}
        assert run.artifacts["record"] == files and run.committed == set(run.artifacts)


def paths(folder: Path, records: list[Record]) -> list[Path]:
    return [record.path_of(one.cell, folder / "results", one.environment["hardware_id"]) for one in records]
