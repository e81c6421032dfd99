"""W&B follows a grid without seeing more than the grid, and is never needed."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from pipeline import ROOT, reachable, record
from pipeline.record import Record
from tests.conftest import CELLS, INSTANT, SMALL
from tests.pipeline import run_file, wandb_server
from tests.pipeline.wandb_server import Server

KEY = "plantedkey" + "0123456789" * 3
SECRETS = (KEY, "planted-token", "planted-argument")
# A whole grid of two lengths, cost and quality, in a few seconds.
GRID = (
    "strategy=attention_sink",
    "profile=smoke",
    "workload.tasks=[single_needle,multi_query]",
    "profile.n_items=2",
    "profile.n_threads=1",
    "+hydra.job.env_set.HF_TOKEN=planted-argument",
)
# Where in a record a logged value comes from, but for tasks and steps.
SOURCES = {
    "seq_len": "cell.seq_len",
    "cell/wall_s": "wall_s",
    "cost/decode_bandwidth_share": "cost.decode_bandwidth_share",
    "quality_text/nll": "quality.text.nll",
    "quality_text/nll_full": "quality.text.nll_full",
    "quality_text/nll_difference": "quality.text.nll_difference.estimate",
    "quality_text/nll_difference_low": "quality.text.nll_difference.low",
    "quality_text/nll_difference_high": "quality.text.nll_difference.high",
    **{f"cost/{ratio}_ratio": f"cost.{ratio}_ratio.estimate" for ratio in ("ttft", "tpot")},
    **{
        f"cost/{ratio}_ratio_{end}": f"cost.{ratio}_ratio.{end}"
        for ratio in ("ttft", "tpot")
        for end in ("low", "high")
    },
    **{
        f"{name}{of}": f"cost.{arm}.{field}"
        for of, arm in (("", "technique"), ("_full", "full"))
        for name, field in {
            "cost/ttft_s": "ttft_s_p50",
            "cost/tpot_s": "tpot_s_p50",
            "cost/decode_tokens_per_s": "decode_tokens_per_s",
            "memory/kv_bytes_held": "kv_bytes_held.-1",
            "memory/kv_bytes_logical": "kv_bytes_logical",
            "memory/peak_memory_bytes": "peak_memory_bytes",
        }.items()
    },
}
# Series of a step, and at which step their first value was taken.
SERIES = {"latency_s": ("step_s", 1), "kv_bytes_held": ("kv_bytes_held", 0)}
SERIES["peak_memory_bytes"] = ("step_peak_memory_bytes", 0)


@dataclass(frozen=True)
class Followed:
    """One whole run in a process of its own, with everything that it wrote."""

    folder: Path
    printed: str
    records: list[Record]
    server: Server | None = None

    @property
    def runs(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("wandb/*run-2*") if not path.is_symlink())

    def holds(self, text: str) -> list[str]:
        """Where `text` stands: in what was printed, written, or sent other than as a credential."""
        found = [str(path) for path in self.folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
        sent = self.server.bodies if self.server else []
        return found + ["printed"] * (text in self.printed) + ["sent"] * any(text.encode() in body for body in sent)


def environment(folder: Path, **planted: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"HOME": str(folder), "WANDB_DIR": str(folder), "PYTHONPATH": str(ROOT)} | planted


def followed(folder: Path, *arguments: str, server: Server | None = None) -> Followed:
    planted = {"WANDB_API_KEY": KEY, "MY_API_TOKEN": "planted-token"}
    planted |= {"WANDB_BASE_URL": server.url} if server else {}
    command = [sys.executable, "-m", "pipeline.run", *arguments, f"results_dir={folder / 'results'}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(folder, **planted), capture_output=True, text=True, timeout=300, check=True
    )
    records = sorted(record.read_all(folder / "results"), key=lambda one: one.cell.seq_len)
    return Followed(folder, done.stdout + done.stderr, records, server)


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Followed:
    return followed(tmp_path_factory.mktemp("offline"), *GRID, "tracking=offline")


@pytest.fixture(scope="module")
def online(tmp_path_factory) -> Iterator[Followed]:
    with wandb_server.serving() as server:
        arguments = (*GRID, "workload.seq_len=96", "tracking=online")
        yield followed(tmp_path_factory.mktemp("online"), *arguments, server=server)


def value_at(one: Record, path: str) -> Any:
    content = one.model_dump()
    return reduce(lambda of, step: of[int(step)] if isinstance(of, list) else of[step], path.split("."), content)


def expected_row(one: Record) -> dict[str, Any]:
    row = {name: value_at(one, source) for name, source in SOURCES.items() if reaches(one, source)}
    for task in one.quality.tasks if one.quality else []:
        name = f"quality_{task.protocol}/{task.task}"
        row |= {name: task.accuracy, f"{name}_full": task.accuracy_full}
    if one.cost:
        row["memory/weight_bytes"] = sum(one.cost.technique.weight_bytes.values())
        row["memory/weight_bytes_full"] = sum(one.cost.full.weight_bytes.values())
    return row


def reaches(one: Record, path: str) -> bool:
    """What the record has no part for is not logged: a workload measures cost, or quality, or both."""
    return getattr(one, path.partition(".")[0]) is not None


def expected_steps(one: Record) -> Iterator[dict[str, Any]]:
    section = f"step_t{one.cell.seq_len}_b{one.cell.batch}"
    for step in range(one.cell.n_new_tokens if one.cost else 0):
        row: dict[str, Any] = {"decode_step": step}
        for of, arm in (("", one.cost.technique), ("_full", one.cost.full)):
            for name, (field, first) in SERIES.items():
                values = getattr(arm, field)
                if 0 <= step - first < len(values):
                    row[f"{section}/{name}{of}"] = values[step - first]
        yield row


def expected_headlines(one: Record) -> dict[str, Any]:
    cost, quality, place = one.cost, one.quality, f"t{one.cell.seq_len}_b{one.cell.batch}"
    assert cost and quality and quality.text
    values = {
        "status": "ok",
        "ttft_ratio": cost.ttft_ratio.estimate,
        "tpot_ratio": cost.tpot_ratio.estimate,
        "kv_share": cost.technique.kv_bytes_held[-1] / cost.full.kv_bytes_held[-1],
        "text_nll_difference": quality.text.nll_difference.estimate,
    }
    for protocol in ("query_aware", "query_agnostic"):
        values[f"accuracy_{protocol}"] = mean(t.accuracy for t in quality.tasks if t.protocol == protocol)
    return {f"{place}/{name}": value for name, value in values.items()}


def test_every_logged_value_is_the_one_in_the_record(offline):
    rows = [row for one in offline.records for row in (expected_row(one), *expected_steps(one))]
    assert len(offline.records) == 2 and len(rows) == 2 * 6
    logged = run_file.read(offline.runs[0])
    assert logged.history == rows
    headlines = {name: value for one in offline.records for name, value in expected_headlines(one).items()}
    last = {name: value for name, value in expected_row(offline.records[-1]).items() if name != "seq_len"}
    assert logged.summary == headlines | last | {"cells/ok": 2, "cells/error": 0, "cells/skipped": 0}


def test_a_run_says_what_it_is(offline):
    logged, config = run_file.read(offline.runs[0]), offline.records[0].config
    assert len(offline.runs) == 1 and logged.exit_code == 0
    assert logged.run["run_group"] == "token-smoke" and logged.run["job_type"] == "token"
    assert logged.run["display_name"] == "tiny-attention_sink-standard"
    assert logged.run["tags"] == ["token", "tiny", "attention_sink", "standard", "cpu", "float32"]
    left_out = {"tracking", "results_dir"}
    machine = {"hardware_id": offline.records[0].environment["hardware_id"]}
    told = {name: value for name, value in config.items() if name not in left_out} | machine
    assert without_empty(logged.config) == without_empty(told)


def without_empty(config: dict[str, Any]) -> dict[str, Any]:
    """Neither side with mappings that hold nothing (plain weights have no transforms): wandb's reader shows none."""
    opened = {name: without_empty(value) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in opened.items() if value != {}}


def test_charts_have_their_axes_without_a_click(offline):
    """The axis that wandb finds for each logged name: of its definition, or of the pattern that it begins with."""
    logged = run_file.read(offline.runs[0])
    for name in {name for row in logged.history for name in row}:
        (metric,) = [
            m for pattern, m in logged.metrics.items() if name == pattern or name.startswith(pattern.rstrip("*"))
        ]
        if "/" in name:
            assert metric["step_metric"] == ("decode_step" if name.startswith("step_") else "seq_len"), name
        else:
            assert metric["options"]["hidden"] and metric["summary"] == {"none": True}, name


def test_records_and_figures_are_attached(offline):
    artifacts = run_file.read(offline.runs[0]).artifacts
    on_disk = {
        str(path.relative_to(offline.folder / "results")): path for path in offline.folder.glob("results/*/*/*/*")
    }
    assert artifacts["record"] == {name: path.read_bytes() for name, path in on_disk.items()}
    assert {"attention_sink-cost.png", "step_latency.png", "recall.png", "text.png"} <= artifacts["figures"].keys()
    assert all(content.startswith(b"\x89PNG") for content in artifacts["figures"].values())
    assert not (offline.folder / ".local").exists(), "wandb keeps no copy in the user's home"


def test_an_offline_run_holds_no_secret(offline):
    assert [offline.holds(secret) for secret in SECRETS] == [[], [], []]
    assert len(offline.holds("tiny-attention_sink-standard")) == 1, "what is logged would be found"
    assert any(path.endswith("debug.log") for path in offline.holds("attention_sink"))


@pytest.mark.slow
def test_an_online_run_arrives_and_holds_no_secret(online):
    assert len(online.server.runs) == 1, online.printed
    (run,), (one,) = online.server.runs.values(), online.records
    rows = [expected_row(one), *expected_steps(one)]
    assert [run_file.without_wandb(row) for _, row in sorted(run.history.items())] == rows
    assert run.told["groupName"] == "token-smoke" and run.is_complete and run.committed == {"record", "figures"}
    assert [online.holds(secret) for secret in SECRETS] == [[], [], []]
    assert "sent" in online.holds("tiny-attention_sink-standard") and not online.server.faults


START = """
import sys, time
from hydra import compose, initialize_config_dir
from pipeline import tracking
from pipeline.config import Experiment
from pipeline.refusals import CONF
with initialize_config_dir(str(CONF), version_base="1.3"):
    experiment = Experiment.from_hydra(compose("config", sys.argv[1:]))
started = time.monotonic()
with tracking.track(experiment) as tracker:
    print("started", time.monotonic() - started, tracker.path.name)
"""


@contextmanager
def deaf_server() -> Iterator[str]:
    """Accepts and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def started_online(folder: Path, url: str, **planted: str) -> tuple[float, str, str]:
    """Seconds until the run was started, its folder and what was said, at a terminal that could be asked."""
    ours, theirs = pty.openpty()
    with closing(os.fdopen(theirs)), closing(os.fdopen(ours)):
        done = subprocess.run(
            [sys.executable, "-c", START, *INSTANT, "tracking=online"],
            cwd=ROOT,
            env=environment(folder, WANDB_BASE_URL=url, **planted),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
    _, seconds, name = done.stdout.split()
    return float(seconds), name, done.stderr


def test_without_a_server_a_run_goes_on_offline(tmp_path):
    seconds, name, said = started_online(tmp_path, "http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert seconds < 15 and name.startswith("offline-run")
    why = "127.0.0.1: [Errno 111] Connection refused"
    assert said == f"tracking=online: {why}; following offline, `wandb sync` sends it later\n"


@pytest.mark.slow
def test_with_a_server_that_never_answers_a_run_goes_on_offline(tmp_path):
    with deaf_server() as url:
        seconds, name, said = started_online(tmp_path, url, WANDB_API_KEY=KEY)
    assert seconds < 15 and name.startswith("offline-run")
    assert (
        said.startswith("tracking=online: 127.0.0.1: no answer within 6 s; following offline") and said.count("\n") == 1
    )


def test_where_nobody_is_logged_in_nobody_is_asked(tmp_path):
    with wandb_server.serving() as server:
        seconds, name, said = started_online(tmp_path, server.url)
    assert seconds < 15 and name.startswith("offline-run") and not server.runs
    assert said.startswith("tracking=online: nobody is logged in; following offline") and said.count("\n") == 1


def test_an_answer_is_an_answer_whatever_it_says(tmp_path):
    with wandb_server.serving() as server:
        assert reachable.no_answer(server.url, 5) == ""
        server.answer_code = 503  # the real one is down behind it
        assert reachable.no_answer(server.url, 5) == "127.0.0.1: HTTP Error 503: Service Unavailable"
    assert "unknown url type" in reachable.no_answer("nonsense:", 5)


def test_disabled_tracking_needs_no_wandb(main, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    assert main(*INSTANT).code == 0


def test_without_wandb_tracking_is_refused_before_any_work(main, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused = main(*SMALL[:3], *SMALL[4:], f"{CELLS}.instant", "tracking=offline")
    assert refused.code == 2 and not list(tmp_path.glob("results/*/*/*/*.json"))
    assert (
        refused.err
        == "tracking=offline: wandb is not installed; valid: tracking=disabled, or after `pip install wandb`\n"
    )


def of_cells(main, tmp_path: Path, monkeypatch, kind: str, *arguments: str) -> run_file.RunFile:
    """The run file of a grid whose cells end in a known way."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    main(*SMALL[:3], *SMALL[4:], f"{CELLS}.{kind}", "tracking=offline", *arguments)
    return run_file.read(max(tmp_path.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns))


def test_cells_that_failed_or_were_skipped_say_why(main, tmp_path, monkeypatch):
    failed = of_cells(main, tmp_path, monkeypatch, "out_of_memory_above_64", "workload.seq_len=[64,128]").summary
    assert failed["t64_b1/status"] == "ok" and failed["t128_b1/status"] == "error"
    assert "can't allocate memory" in failed["t128_b1/reason"] and "shorter" in failed["t128_b1/remedy"]
    assert (failed["cells/ok"], failed["cells/error"], failed["cells/skipped"]) == (1, 1, 0)
    skipped = of_cells(main, tmp_path, monkeypatch, "too_long", "workload.seq_len=64").summary
    assert skipped["t64_b1/status"] == "skipped" and skipped["t64_b1/reason"] == "takes too long"


def test_a_run_shows_the_whole_grid_also_what_was_measured_before(main, tmp_path, monkeypatch):
    of_cells(main, tmp_path, monkeypatch, "instant", "workload.seq_len=64")
    both = of_cells(main, tmp_path, monkeypatch, "instant", "workload.seq_len=[64,128]")
    assert [row["seq_len"] for row in both.history] == [64, 128] and both.summary["cells/ok"] == 2


def test_batches_of_one_grid_are_charts_apart(main, tmp_path, monkeypatch):
    both = of_cells(main, tmp_path, monkeypatch, "instant", "workload.seq_len=64", "workload.batch=[1,4]")
    assert [{name for name in row if name != "seq_len"} for row in both.history] == [
        {"cell_b1/wall_s"},
        {"cell_b4/wall_s"},
    ]
    assert both.summary["t64_b1/status"] == both.summary["t64_b4/status"] == "ok"


def test_a_changed_technique_has_its_own_name_and_long_tags_fit(main, tmp_path, monkeypatch):
    given = ("strategy=attention_sink", "strategy.scorer.n_sinks=8", "strategy.kv_budget=16", "workload.seq_len=64")
    run = of_cells(main, tmp_path, monkeypatch, "instant", *given, f"model.name={'m' * 90}").run
    assert run["display_name"] == f"{'m' * 90}-attention_sink+scorer.n_sinks=8-cost"
    assert run["tags"][:3] == ["token", "m" * 64, "attention_sink"]
