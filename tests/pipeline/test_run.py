"""The command: bad input is one line, a failing cell is a row, a killed grid goes on where it was."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from pipeline import ROOT, record
from tests.conftest import CELLS, INSTANT, SMALL

WINDOW = "strategy=sliding_window"
BAD_INPUT = {
    "unknown strategy": (["strategy=slidng_window"], "strategy=slidng_window", "sliding_window"),
    "misspelt option": (["workload.seqlen=64"], "workload.seqlen", "workload.seq_len"),
    "misspelt group": (["stratgy=full"], "stratgy", "strategy"),
    "option without its group": (["kv_budget=64"], "kv_budget", "strategy.kv_budget"),
    "several values": (["workload.seq_len=512,1024"], "workload.seq_len=512,1024: several values", "[512,1024]"),
    "added option": (["+speed=3"], "speed", "no such option"),
    "unreadable": (["strategy"], "strategy", "name=value"),
    "negative budget": ([WINDOW, "strategy.kv_budget=-5"], "strategy.kv_budget=-5", "greater than 0"),
    "zero budget": ([WINDOW, "strategy.kv_budget=0"], "strategy.kv_budget=0", "greater than 0"),
    "ratio above one": ([WINDOW, "strategy.keep_ratio=1.5"], "strategy.keep_ratio=1.5", "less than or equal to 1"),
    "ratio that keeps nothing": ([WINDOW, "strategy.keep_ratio=0.0001"], "strategy.keep_ratio=0.0001", "one token"),
    "budget of what never evicts": (["strategy=full", "strategy.kv_budget=64"], "strategy.kv_budget=64", "null"),
    "sinks fill the budget": (["strategy=attention_sink", "strategy.kv_budget=4"], "n_sinks=4", "above 4"),
    "no length": (["workload.seq_len=0"], "workload.seq_len=0", "greater than 0"),
    "length in words": (["workload.seq_len=long"], "workload.seq_len=long", "integer"),
    "empty grid": (["workload.seq_len=[]"], "workload.seq_len=[]", "at least 1"),
    "negative batch": (["workload.batch=-1"], "workload.batch=-1", "greater than 0"),
    "above the positions": (["model=gpt2", "workload=cost", "workload.seq_len=1024"], "seq_len=1024", "at most 991"),
    "too few steps": (["workload.n_new_tokens=3"], "workload.n_new_tokens=3", "at least 9"),
    "nothing held to evict": ([WINDOW, "strategy/placement=recompute"], "strategy/placement=recompute", "contiguous"),
    "shape of another kind": ([*SMALL, "model.config.hidden_size=[1]"], "model.config of bench", "the fields of"),
    "heads that do not divide": ([*SMALL, "model.config.num_attention_heads=3"], "(3)", "the fields of"),
    "task without room": (["workload.seq_len=64"], "workload.seq_len=64", "at least 66"),
    "unknown task": (["workload.tasks=[poetry]"], "workload.tasks=poetry", "single_needle"),
    "unknown dtype": (["dtype=float8"], "dtype=float8", "float32"),
    "unknown device": (["device=tpu"], "device=tpu", "cuda"),
    "missing folder": (["model=hub", "model.path=/no/such", "workload=cost"], "model.path=/no/such", "folder"),
    "quality of random weights": (["model=bench"], "model.source=random", "workload=cost"),
    "unknown in a sweep": (["--multirun", "strategy=full,sinks"], "strategy=sinks", "attention_sink"),
    "later job of a sweep": (
        ["--multirun", *INSTANT[1:], "strategy=sliding_window,full", "strategy.kv_budget=50"],
        "strategy.kv_budget=50",
        "never evicts",
    ),
    "wrong value in a sweep": (["--multirun", "strategy=full,no_cache", "dtype=float8"], "dtype=float8", "float32"),
}


def records(tmp_path: Path) -> dict[Path, int]:
    """Every record with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "results").rglob("*.json"))}


def command(tmp_path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.run", *arguments, f"results_dir={tmp_path / 'results'}"]


@pytest.mark.parametrize(("arguments", "named", "valid"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_written(main, tmp_path, arguments, named, valid):
    outcome = main(*arguments, "profile=cpu")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert named in outcome.err
    assert valid in outcome.err
    assert not records(tmp_path)


def test_cuda_without_a_gpu_is_refused(main, monkeypatch):
    monkeypatch.setattr("pipeline.hardware.has_cuda", lambda: False)
    outcome = main("device=cuda")
    assert outcome.code == 2
    assert outcome.err.startswith("device=cuda: ")


def test_pickled_weights_are_refused(main, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    outcome = main("model=hub", f"model.path={tmp_path}", "workload=cost")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "safetensors" in outcome.err


def test_bad_input_is_one_line_for_a_real_process(tmp_path):
    done = subprocess.run(
        command(tmp_path, "--multirun", "strategy=full,none"), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("strategy=none: not found; valid: ")
    assert done.stderr.count("\n") == 1


def test_corrupt_record_is_named_and_nothing_is_lost(main, tmp_path):
    assert main(*INSTANT).code == 0
    corrupt, other = records(tmp_path)
    corrupt.write_text("{")
    before = records(tmp_path)
    outcome = main(*INSTANT, "prune=true")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert str(corrupt) in outcome.err
    assert records(tmp_path) == before
    assert other.exists()


def test_a_grid_writes_one_record_for_each_cell_and_says_where(main, tmp_path):
    outcome = main(*INSTANT, WINDOW, "workload.seq_len=[64,128]")
    assert outcome.code == 0
    paths = records(tmp_path)
    assert len(paths) == 2
    for path in paths:
        assert str(path) in outcome.out
        assert record.read(path).status == "ok"


def test_second_run_measures_nothing(main, tmp_path):
    main(*INSTANT)
    before = records(tmp_path)
    outcome = main(*INSTANT)
    assert outcome.err.count("already measured") == len(before) == 2
    assert records(tmp_path) == before


def test_changed_configuration_is_measured_again(main, tmp_path):
    main(*INSTANT)
    before = records(tmp_path)
    assert "already measured" not in main(*INSTANT, "profile.n_bootstrap=7").err
    after = records(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)


def test_failing_cell_is_a_row_and_the_grid_goes_on(main, tmp_path):
    outcome = main(*SMALL, f"{CELLS}.out_of_memory_above_64", "workload.seq_len=[64,128,32]")
    assert outcome.code == 0
    by_length = {item.cell.seq_len: item for item in record.read_all(tmp_path / "results")}
    assert {length: item.status for length, item in by_length.items()} == {32: "ok", 64: "ok", 128: "error"}
    failed = by_length[128]
    assert failed.reason.startswith(
        "RuntimeError: DefaultCPUAllocator: can't allocate memory (tests/pipeline/cells.py:"
    )
    assert "shorter workload.seq_len" in failed.remedy
    assert failed.reason in outcome.out


def test_a_run_in_which_every_cell_failed_says_so_and_a_stage_leaves_it_to_the_last_one(main):
    failing = (*SMALL, f"{CELLS}.not_a_number")
    assert main(*failing).code == 1
    assert main(*failing, "prune=true").code == 0
    assert main("--multirun", *failing, "strategy=full,no_cache").code == 0
    assert main(*SMALL, f"{CELLS}.too_long").code == 0
    assert main(*SMALL, f"{CELLS}.too_long").code == 0


def test_results_that_cannot_be_written_are_refused(main, tmp_path):
    (tmp_path / "results").write_text("a file")
    outcome = main(*INSTANT)
    assert outcome.code == 2
    assert outcome.err.startswith(f"results_dir={tmp_path / 'results'}: ") and outcome.err.count("\n") == 1


def test_an_error_of_ours_outside_the_cells_is_no_bad_input(main, monkeypatch):
    """It has to be repaired here, so it keeps its traceback."""
    monkeypatch.setattr("pipeline.record.write", lambda *_: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(*INSTANT)


def test_failed_cell_is_tried_again(main, tmp_path):
    main(*SMALL, f"{CELLS}.not_a_number", "workload.seq_len=64")
    (before,) = record.read_all(tmp_path / "results")
    assert (before.status, before.remedy) == ("error", "a wider dtype: dtype=float32")
    assert "already measured" not in main(*SMALL, f"{CELLS}.not_a_number", "workload.seq_len=64").err


def test_skipped_cell_keeps_its_reason(main, tmp_path):
    assert "takes too long" in main(*SMALL, f"{CELLS}.too_long", "workload.seq_len=64").out
    (skipped,) = record.read_all(tmp_path / "results")
    assert (skipped.status, skipped.reason, skipped.remedy) == ("skipped", "takes too long", "be patient")


def test_what_was_skipped_is_tried_again_since_a_package_or_memory_may_be_there_by_now(main):
    main(*SMALL, f"{CELLS}.too_long", "workload.seq_len=64")
    assert "already measured" not in main(*SMALL, f"{CELLS}.too_long", "workload.seq_len=64").err


def test_a_record_of_an_older_version_counts_as_not_measured(main, tmp_path):
    main(*INSTANT, "workload.seq_len=[64,128]")
    for path in records(tmp_path):
        path.write_text(path.read_text().replace('"schema_version": 3', '"schema_version": 2'))
    outcome = main(*INSTANT, "workload.seq_len=64")
    assert outcome.code == 0 and "2 records of an older version" in outcome.err and "ok after" in outcome.err
    with pytest.raises(record.OutdatedRecord, match="t128"):
        record.read_all(tmp_path / "results")
    main(*INSTANT, "workload.seq_len=64", "prune=true")
    assert {item.cell.seq_len for item in record.read_all(tmp_path / "results")} == {64}


def test_pruning_removes_only_this_workloads_other_cells(main, tmp_path):
    main(*INSTANT, "workload.seq_len=[64,128]")
    main(*INSTANT, "workload=batched", "workload.seq_len=32")
    assert len(records(tmp_path)) == 3
    main(*INSTANT, "workload.seq_len=64")
    assert len(records(tmp_path)) == 3
    assert "t128" in main(*INSTANT, "workload.seq_len=64", "prune=true").out
    assert {record.read(path).cell.seq_len for path in records(tmp_path)} == {32, 64}


@pytest.mark.parametrize("change", ["model=gpt2", "dtype=float64", "weights=bnb_int8", "workload=batched"])
def test_pruning_keeps_what_another_grid_owns(main, tmp_path, change):
    main(*INSTANT, "workload.seq_len=[64,128]")
    by_hand = [argument for argument in INSTANT if not argument.startswith("model")] if "model" in change else INSTANT
    assert "removed" not in main(*by_hand, change, "workload.seq_len=32", "prune=true").out
    assert len(records(tmp_path)) == 3


def test_sweep_runs_every_job_in_one_process(main, tmp_path):
    assert main("--multirun", *INSTANT[2:], "workload=cost,batched", "strategy=full,no_cache").code == 0
    found = {(item.cell.strategy, item.cell.workload) for item in record.read_all(tmp_path / "results")}
    assert found == {("full", "cost"), ("full", "batched"), ("no_cache", "cost"), ("no_cache", "batched")}


def test_record_says_where_it_was_measured_and_holds_no_secret(main, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "s3cr3t-value")
    main(*INSTANT, "workload.seq_len=64")
    (path,) = records(tmp_path)
    environment = record.read(path).environment
    assert environment["hardware_id"] == path.parent.name
    assert {"python", "torch", "transformers"} <= environment["versions"].keys()
    assert environment["n_threads"] >= 1
    assert "s3cr3t-value" not in path.read_text()


def test_two_runs_of_one_folder_follow_each_other(tmp_path):
    lock = FileLock(tmp_path / "results/.locks/token-full.lock")
    Path(lock.lock_file).parent.mkdir(parents=True)
    with lock:
        waiting = subprocess.Popen(command(tmp_path, *INSTANT), stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert waiting.stderr and waiting.stderr.readline().startswith("waiting for another run")
        assert not records(tmp_path)
    assert waiting.wait(60) == 0
    assert len(records(tmp_path)) == 2


def test_killed_grid_goes_on_at_the_next_cell(main, tmp_path):
    grid = (*SMALL, f"{CELLS}.slow", "workload.seq_len=[8,16,24]")
    running = subprocess.Popen(command(tmp_path, *grid), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    while not records(tmp_path):
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    finished = records(tmp_path)
    assert 1 <= len(finished) < 3
    half_written = next(iter(finished)).parent / ".killed.tmp"
    half_written.write_text("{")
    assert main(*grid).err.count("already measured") == len(finished)
    after = records(tmp_path)
    assert len(after) == 3
    assert finished.items() <= after.items()
    assert not half_written.exists()


def cpu_s(*arguments: str) -> tuple[float, str]:
    """Processor time of Python with these arguments, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


@pytest.mark.alone
def test_help_is_cheap():
    """Beside what it must not load, because machines differ, and one differs from itself an hour ago."""
    loading_s, _ = cpu_s("-c", "import pipeline.levels.paired")
    help_s, said = cpu_s("-m", "pipeline.run", "--help")
    assert "sliding_window" in said
    assert help_s < 0.5 * loading_s


def test_command_works_from_a_folder_inside_the_project(tmp_path):
    done = subprocess.run(
        command(tmp_path, *INSTANT),
        cwd=ROOT / "conf",
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # also where the project is not installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path)) == 2


@pytest.mark.slow
def test_real_cells_are_measured_and_shown(main, tmp_path):
    outcome = main(*SMALL, WINDOW, "workload.seq_len=[32,64]")
    assert outcome.code == 0
    measured = record.read_all(tmp_path / "results")
    assert [item.status for item in measured] == ["ok", "ok"], [item.reason for item in measured]
    for item in measured:
        assert item.cost
        assert item.cost.technique.kv_bytes_held[-1] < item.cost.full.kv_bytes_held[-1]
        assert json.loads(item.model_dump_json())["cost"]["tpot_ratio"]["n"] == 2
    assert "TPOT / full" in outcome.out


def flags_refused(main, *arguments: str) -> str:
    outcome = main(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    return outcome.err


def test_flags_that_exclude_each_other_are_refused_in_one_line(main):
    assert flags_refused(main, "--multirun", "--cfg", "job") == (
        "--multirun --cfg: cannot be had together; valid: one of them\n"
    )
    assert flags_refused(main, "--cfg", "job", "--info", "config").startswith("--cfg --info: ")
    assert flags_refused(main, "--resolve").startswith("--resolve: ")


def test_the_resolved_configuration_can_be_seen(main):
    outcome = main("--cfg", "job", "--resolve", *INSTANT, WINDOW)
    assert outcome.code == 0
    assert OmegaConf.create(outcome.out).strategy.name == "sliding_window"


# As bash calls a completion function when <TAB> is pressed at the end of the line.
PRESS_TAB = """
source completion.bash
COMP_LINE=$1 COMP_WORDS=($1) COMP_POINT=${#1}
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_pipeline_run
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("strategy=sl", {"strategy=sliding_window"}),
        ("--multirun strategy=full workload=bat", {"workload=batched"}),
        ("strategy=attention_sink strategy/sc", {"strategy/scorer=", "strategy/schedule="}),
        ("workload.seq", {"workload.seq_len="}),
    ],
)
def test_tab_completes_groups_options_and_fields(line, offered):
    pressed = f"{sys.executable} -m pipeline.run {line}"
    done = subprocess.run(["bash", "-c", PRESS_TAB, "-", pressed], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_tab_after_another_python_command_offers_nothing_of_ours():
    pressed = f"{sys.executable} -m pipeline.list strategy=sl"
    done = subprocess.run(["bash", "-c", PRESS_TAB, "-", pressed], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
