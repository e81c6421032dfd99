"""The dashboard shows what runs log, nothing else, and is the same each time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import ROOT, dashboard, metrics
from pipeline.dashboard import VIEWS, View
from pipeline.record import Record
from tests.pipeline import run_file, wandb_server
from tests.pipeline.report import factory
from tests.pipeline.report.system import test_engines
from tests.pipeline.test_tracking import GRID, KEY, environment, followed

NO_CHART = re.compile(
    r"cell(_b\d+)?/wall_s|memory(_b\d+)?/kv_bytes_logical(_full)?|throughput(_b\d+)?/kv_bytes_.*_(one_by_one|batch)"
)
OF_RUN = {view.job_type: view for view in VIEWS}


def measured() -> Record:
    """Cost with bytes of weights, and quality: all that a cell of the first three levels can hold."""
    cost = factory.cost(factory.cell("h2o"), 0.5)
    arms = {
        name: getattr(cost, name).model_copy(update={"weight_bytes": {"linear": 8}}) for name in ("technique", "full")
    }
    return factory.timed("h2o").model_copy(
        update={"cost": cost.model_copy(update=arms), "quality": factory.quality(0.1)}
    )


def logged(job_type: str, several_batches: bool = False) -> set[str]:
    if job_type == "train":
        point = {"seq_len": 64, "text_nll": 4.0, "answer_nll": 2.0, "single_needle_accuracy": 0.5}
        return set(metrics.training_row(1, point, 0.001)) - set(metrics.TRAINING_AXES.values())
    record = test_engines.made("vllm", 90) if job_type == "engine" else measured()
    rows = [metrics.cell_row(record, several_batches), *metrics.step_rows(record)]
    return {name for row in rows for name in row} - set(metrics.CELL_AXES.values())


def unmatched(view: View, names: set[str]) -> list[str]:
    """The panels that none of the names is for."""
    return [panel.title for panel in view.panels if not any(panel.shows(name) for name in names)]


@pytest.mark.parametrize("several_batches", [False, True])
@pytest.mark.parametrize("job_type", OF_RUN)
def test_every_panel_shows_something_that_runs_of_its_level_log(job_type: str, several_batches: bool) -> None:
    assert unmatched(OF_RUN[job_type], logged(job_type, several_batches)) == []


@pytest.mark.parametrize("job_type", ["token", "engine", "train"])
def test_everything_that_is_logged_has_a_panel(job_type: str) -> None:
    shown = {name for name in logged(job_type) if any(panel.shows(name) for panel in OF_RUN[job_type].panels)}
    without = {name for name in logged(job_type) - shown if not NO_CHART.fullmatch(name)}
    assert without <= ({"memory/weight_bytes", "memory/weight_bytes_full"} if job_type == "token" else set())


def test_a_panel_for_what_nobody_logs_would_be_found() -> None:
    invented = View("", "token", {"": (dashboard.Panel("Invented", "cost/joules"),)})
    assert unmatched(invented, logged("token")) == ["Invented"]


@pytest.mark.parametrize("panel", [panel for view in VIEWS for panel in view.panels], ids=lambda panel: panel.title)
def test_a_panel_has_the_axis_that_its_names_are_logged_with(panel: dashboard.Panel) -> None:
    rows = [
        metrics.cell_row(measured()),
        *metrics.step_rows(measured()),
        metrics.cell_row(test_engines.made("vllm", 90)),
    ]
    rows.append(metrics.training_row(1, {"seq_len": 64, "text_nll": 4.0, "single_needle_accuracy": 0.5}, 0.001))
    shown = [row for row in rows if any(panel.shows(name) for name in row)]
    assert shown and all(panel.axis in row for row in shown)


@pytest.mark.slow
def test_panels_of_the_token_level_find_their_names_in_a_real_run(tmp_path: Path) -> None:
    run = followed(tmp_path, *GRID, "workload.seq_len=96", "tracking=offline")
    read = run_file.read(run.runs[0])
    view = OF_RUN[read.run["job_type"]]
    assert unmatched(view, {name for row in read.history for name in row}) == []


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.job_type)
def test_what_is_sent_holds_the_panels_and_is_the_same_twice(view: View) -> None:
    pytest.importorskip("wandb_workspaces")
    told = dashboard.spec(view, "somebody", "a-project")
    assert told == dashboard.spec(view, "somebody", "a-project")
    section = told["spec"]["section"]
    drawn = [panel["config"] for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    assert [one["metricRegex"] for one in drawn] == [f"^{panel.pattern}$" for panel in view.panels]
    assert [one["xAxis"] for one in drawn] == [panel.axis for panel in view.panels]
    assert view.job_type in json.dumps(section["runSets"][0]["filters"])


def published(folder: Path, **planted: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.dashboard"]
    told = environment(folder, **planted)
    return subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=120, check=False)


def test_without_a_server_the_workspaces_are_written_and_hold_no_secret(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    done = published(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    path = tmp_path / "wandb" / dashboard.FILE
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"not published: 127.0.0.1: [Errno 111] Connection refused; the workspaces are in {path}\n"
    assert [one["displayName"] for one in json.loads(path.read_text())] == [f"kv-cache-lab: {v.name}" for v in VIEWS]
    assert KEY not in path.read_text() and os.environ.get("USER", "nobody-at-all") not in path.read_text()


def test_where_somebody_is_logged_in_views_are_published_and_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb_workspaces")
    kept: dict[str, dict[str, Any]] = {}

    def upsert(server: object, told: dict[str, Any]) -> Any:
        kept[told["name"]] = told
        return {"upsertView": {"view": {"id": f"id of {told['name']}", "name": told["name"]}, "inserted": True}}

    def find(server: object, told: dict[str, Any]) -> Any:
        found = [kept[told["viewName"]]] if told["viewName"] in kept else []
        node = [{"node": {"id": f"id of {one['name']}", "displayName": "", "spec": one["spec"]}} for one in found]
        return {"project": {"allViews": {"edges": node}}}

    viewer = {"viewer": {"id": "U", "entity": "somebody"}}
    monkeypatch.setitem(wandb_server.OPERATIONS, "GetDefaultEntity", lambda server, told: viewer)
    monkeypatch.setitem(wandb_server.OPERATIONS, "UpsertView2", upsert)
    monkeypatch.setitem(wandb_server.OPERATIONS, "View", find)
    with wandb_server.serving() as server:
        once, again = (published(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY) for _ in range(2))
    assert (once.returncode, again.returncode) == (0, 0), once.stderr + again.stderr + str(server.faults)
    assert once.stdout.count("http") == len(VIEWS) and once.stdout == again.stdout
    assert len(kept) == len(VIEWS), "published again, a view takes the place of the earlier one"
    assert {one.get("id") for one in kept.values()} == {f"id of {name}" for name in kept}
    assert not any(KEY.encode() in body for body in server.bodies)


def test_what_the_server_refuses_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    with wandb_server.serving() as server:  # that knows of no workspaces
        done = published(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, WANDB_ENTITY="somebody")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("W&B: ")
    assert done.stderr.count("\n") == 1


def test_without_the_package_the_extra_is_named(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert dashboard.main([]) == 2
    said = "wandb_workspaces is not installed; valid: after `pip install -e '.[dashboard]'`\n"
    assert capsys.readouterr().err == said
