"""Records that are odd: told where it matters, or refused in one line; never a silent gap."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.findings import evidence, faults
from pipeline.record import Record
from pipeline.report import context, notes, render
from pipeline.report.__main__ import main
from tests.pipeline.report import factory
from tests.pipeline.report.system import test_engines


def changed(made: Record, path: str, value: float) -> Record:
    """With one number replaced, of `cost.technique.step_s.3` the fourth."""
    content: Any = made.model_dump()
    *steps, last = path.split(".")
    place = content
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = value
    return Record.model_validate(content)


COST = ("cost.technique.step_s.3", "cost.full.tpot_s.0", "cost.full_again.step_s.1", "cost.copy_bandwidth_bytes_per_s",
        "cost.link_bandwidth_bytes_per_s")  # fmt: skip
QUALITY = (
    "quality.tasks.0.items.nll.5",
    "quality.tasks.1.accuracy",
    "quality.tasks.2.accuracy_difference.estimate",
    "quality.text.items.nll_full.0",
    "quality.text.nll",
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", [*COST, *QUALITY])
def test_a_number_that_none_can_measure_makes_the_cell_a_failed_one(path: str, value: float) -> None:
    made = factory.timed("h2o") if path in COST else factory.judged("h2o")
    assert faults.sound(made) is made
    odd = faults.sound(changed(made, path, value))
    assert odd.status == "error" and odd.cost is None and odd.quality is None
    assert f"holds {value}, which no measurement gives" in odd.reason and odd.remedy


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_step_that_took_no_time_was_not_measured(value: float) -> None:
    odd = faults.sound(changed(factory.timed("h2o"), "cost.technique.step_s.0", value))
    assert odd.status == "error" and odd.reason.startswith(f"cost.technique.step_s holds {value}")


def test_an_engine_that_took_no_time_was_not_measured() -> None:
    odd = faults.sound(changed(test_engines.made("vllm", 90), "throughput.batch.wall_s.0", math.nan))
    assert odd.status == "error" and odd.throughput is None and "throughput.batch.wall_s" in odd.reason


def test_what_may_be_undefined_stays() -> None:
    """A prefill that was not timed, a ratio to nothing, an interval of one sample."""
    made = factory.timed("h2o")
    made = changed(changed(made, "cost.technique.ttft_s.0", math.nan), "cost.ttft_ratio.estimate", math.nan)
    assert faults.sound(changed(made, "cost.ttft_ratio.high", math.inf)).status == "ok"


def rendered(results: Path) -> str:
    return render.render(results, results.parent / "reports")[render.REPORT].decode()


def test_odd_records_are_told_at_the_end_and_nothing_of_them_is_drawn(tmp_path: Path) -> None:
    sane = [factory.timed("full"), factory.timed("tova"), factory.judged("full"), factory.judged("tova")]
    odd = [changed(factory.timed("h2o"), COST[0], math.inf), changed(factory.judged("h2o"), QUALITY[0], math.nan)]
    text = rendered(factory.store([*sane, *odd], tmp_path / "results"))
    told = text[text.index("## Skipped and failed cells") :]
    assert "cost.technique.step_s holds inf, which no measurement gives" in told
    assert "quality of single_needle, query_aware holds nan, which no measurement gives" in told
    assert "4 measured, 2 failed and 0 skipped" in text
    before = text[: text.index("## Skipped and failed cells")]
    assert " nan" not in before and " inf" not in before


@pytest.mark.usefixtures("undrawn")
def test_a_missing_baseline_is_told_for_its_setting(tmp_path: Path) -> None:
    results = factory.store([factory.timed("full"), factory.judged("h2o")], tmp_path / "results")
    (note,) = notes.notes(evidence.load(results))
    assert note.startswith("No record of `full` itself on model `tiny`, workload `quality` (level token): ratios")
    assert f"> {note}" in rendered(results)
    factory.store([factory.judged("full")], results)
    assert notes.notes(evidence.load(results)) == []


def test_a_baseline_that_failed_is_missing_too(tmp_path: Path) -> None:
    failed = factory.make(factory.cell("full"), status="error", reason="MemoryError", remedy="a shorter prompt")
    (note,) = notes.notes(evidence.load(factory.store([failed, factory.timed("h2o")], tmp_path)))
    assert note.startswith("No record of `full` itself")


def test_two_machines_are_told_apart_and_where_they_meet_is_named(tmp_path: Path) -> None:
    for machine in ("machine-a", "machine-b"):
        factory.store([factory.timed("full")], tmp_path, machine)
    (note,) = notes.notes(evidence.load(tmp_path))
    assert note.startswith("Records of 2 machines, `machine-a` and `machine-b`")
    assert "[several machines](#several-machines)" in note


def refused(results: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said; nothing is written."""
    reports = results.parent / "reports"
    assert main([str(results), str(reports)]) == 2 and not reports.exists()
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("version", [1, 2, 4])
def test_records_of_several_schema_versions_are_refused(tmp_path: Path, capsys: Any, version: int) -> None:
    results = factory.store([factory.timed("full"), factory.timed("h2o")], tmp_path / "results")
    (path,) = results.glob("token/h2o/*/*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    assert f"{path}: a record of another version; measure its cell again" in refused(results, capsys)


def test_a_record_without_a_machine_is_refused(tmp_path: Path, capsys: Any) -> None:
    results = factory.store([factory.timed("full"), factory.timed("h2o")], tmp_path / "results")
    (path,) = results.glob("token/h2o/*/*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"environment": {}}))
    assert "record of h2o" in (said := refused(results, capsys)) and "environment.hardware_id is missing" in said


def test_a_record_that_was_moved_is_refused(tmp_path: Path, capsys: Any) -> None:
    results = factory.store([factory.timed("full"), factory.timed("h2o")], tmp_path / "results")
    (folder,) = results.glob("token/h2o/*")
    folder.rename(folder.with_name("another-machine"))
    assert f"{folder}/" in (said := refused(results, capsys)) and "lies in another file; move it there" in said


def test_the_same_record_twice_is_refused(tmp_path: Path, capsys: Any) -> None:
    results = factory.store([factory.timed("full"), factory.timed("h2o")], tmp_path / "results")
    (folder,) = results.glob("token/h2o/*")
    shutil.copytree(folder, folder.with_name("another-machine"))
    assert "2 files hold the record of this cell; delete all but this one" in refused(results, capsys)


def test_weights_and_engines_of_one_setting_are_one_line_of_what_was_run(tmp_path: Path) -> None:
    ways = ("none", "bnb_nf4", "lorc")
    records = [factory.timed("full", level="system", weights=way) for way in ways]
    records += [test_engines.made(engine, 90) for engine in ("vllm", "hf_batch")]
    rows = evidence.load(factory.store(records, tmp_path))
    lines = {line[0]: line for line in context.grid(rows).rows}
    assert len(context.grid(rows).rows) == 2
    assert "`none`" in lines["system"][5] and "`bnb_nf4`" in lines["system"][5] and "`lorc`" in lines["system"][5]
    assert lines["system"][-1] == "3 / 0 / 0" and lines["engine"][6] == "`hf_batch`, `vllm`"
