"""The study's page: every verdict follows the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.findings import evidence, verdicts
from pipeline.record import Interval, Record
from pipeline.report import render
from pipeline.report.study import repeated as study
from pipeline.study import Memory, Setting, read
from tests.pipeline.report import factory

SETTINGS = {setting.id: setting for setting in read().rows}
QUIET = factory.interval(1.0, 0.01)


def record_of(setting: Setting, ratio: float, **changes: Any) -> Record:
    point = {"level": "study", "workload": "study", "model": "gpt2", "n_new_tokens": setting.n_new_tokens}
    budget = setting.point.get("kv_budget")
    of = factory.cell(setting.strategy, seq_len=1, kv_budget=budget, **point)
    item = factory.make(of, cost=factory.cost(of, ratio), **changes)
    strategy = item.config["strategy"] | {"name": setting.strategy, **setting.point}
    return item.model_copy(update={"config": item.config | {"strategy": strategy}})


def page(tmp_path: Path, *records: Record) -> str:
    factory.store([factory.timed("full"), *records], tmp_path)
    text = render.render(tmp_path, tmp_path / "reports")["report.md"].decode()
    return text.partition("## An earlier study")[2].partition("## Skipped")[0]


def line(tmp_path: Path, setting: Setting, *records: Record) -> str:
    rows = evidence.load(factory.store(list(records), tmp_path))
    text = "\n".join(str(table) for _, table in study.tables(study.repeated(rows)))
    return next(found for found in text.splitlines() if found.startswith(f"| {setting.title} (`"))


@pytest.mark.parametrize(
    ("now", "word"),
    [(3.5, study.AGREES), (1.5, study.OTHER_SIZE), (0.5, study.CONTRADICTS), (1.0, study.CONTRADICTS)],
)
@pytest.mark.usefixtures("undrawn")
def test_a_time_is_judged_against_the_earlier_one(tmp_path: Path, now: float, word: str) -> None:
    sinks = SETTINGS["sinks_4_128"]  # 3–4 times slower then
    assert f"| {word} |" in line(tmp_path, sinks, record_of(sinks, now))


def test_where_neither_is_excluded_no_difference_is_found() -> None:
    unsure = Interval(estimate=1.03, low=0.96, high=1.1, n=16)
    assert study.decode((1.05, 1.10), unsure, QUIET) == verdicts.NO_DIFFERENCE
    assert study.decode((1.05, 1.10), unsure.model_copy(update={"n": 1}), QUIET) == verdicts.ONE_SAMPLE
    wide = Interval(estimate=1.03, low=0.6, high=1.7, n=2)
    assert study.decode((1.05, 1.10), wide, QUIET) == verdicts.UNDECIDED
    assert study.decode((0.80, 0.87), factory.interval(0.85, 0.02), QUIET) == study.AGREES


def test_memory_is_judged_by_what_the_study_spoke_of() -> None:
    cost = factory.cost(factory.cell("sliding_window", 512), 1.0)
    held = study.held_share(cost)
    assert study.memory(Memory(of="kv_held", ratio=(held, held + 0.01)), cost) == study.AGREES
    assert study.memory(Memory(of="kv_held", ratio=(0.9, 0.95)), cost) == study.OTHER_SIZE
    assert study.memory(Memory(of="peak", ratio=(1.0, None)), cost) == study.CONTRADICTS
    assert study.peak_share(cost) > held


@pytest.mark.usefixtures("undrawn")
def test_what_has_no_record_or_failed_is_a_row_all_the_same(tmp_path: Path) -> None:
    window, minicache = SETTINGS["window_128"], SETTINGS["minicache"]
    failed = record_of(window, 1.0).model_copy(update={"cost": None, "status": "error", "reason": "no such kernel"})
    assert "| failed |" in line(tmp_path, window, failed)
    assert f"| {study.NOT_MEASURED} |" in line(tmp_path, minicache, failed)


def test_the_limit_of_bytes_is_that_of_the_predicted_bytes(tmp_path: Path) -> None:
    item = record_of(SETTINGS["window_128"], 0.5)
    assert item.predicted is not None
    per_token, weights = item.predicted.kv_bytes_per_token, 10**9
    read_bytes = weights + 128 * per_token
    item = item.model_copy(update={
        "predicted": item.predicted.model_copy(update={"decode_bytes_per_step": read_bytes})
    })  # fmt: skip
    (row,) = evidence.load(factory.store([item], tmp_path))
    mean, last, best = study.best_ratio(row)
    full = weights + 512 * per_token
    assert (mean, best) == pytest.approx((512 * per_token / full, weights / full))
    assert last == pytest.approx(1024 * per_token / (weights + 1024 * per_token))
    (said,) = [line for line in study.sentences(study.repeated([row])) if "bytes alone" in line]
    assert "Below that" in said and "`sliding_window 128`" in said


def test_the_steadier_ranks_first(tmp_path: Path) -> None:
    steady, wild = record_of(SETTINGS["sinks_4_128"], 1.0), record_of(SETTINGS["h2o_32_128"], 1.0)
    cost = wild.cost
    assert cost is not None
    steps = [step * (3 if number % 5 == 0 else 1) for number, step in enumerate(cost.technique.step_s)]
    arm = cost.technique.model_copy(update={"step_s": steps})
    wild = wild.model_copy(update={"cost": cost.model_copy(update={"technique": arm})})
    rows = evidence.load(factory.store([steady, wild], tmp_path))
    ((_, table),) = study.rankings(study.repeated(rows))
    assert [found[1] for found in table.rows][-1] == "`h2o 160`"
    assert table.rows[-1][-1] == verdicts.UNSTEADIER


def test_one_line_for_each_setting_and_one_panel_for_each_length(tmp_path: Path) -> None:
    records = [record_of(SETTINGS[name], 1.0) for name in ("sinks_4_128", "sinks_4_252", "window_128")]
    factory.store([factory.timed("full"), *records], tmp_path)
    files = render.render(tmp_path, tmp_path / "reports")
    drawn = [name for name in files if "study_" in name and name.endswith(".svg")]
    assert [name.partition("-")[0] for name in drawn] == [
        f"figures/{n}" for n in ("study_latency", "study_kv_bytes", "study_memory")
    ]
    assert "Study level" not in files["report.md"].decode()


@pytest.mark.usefixtures("undrawn")
def test_without_records_the_page_says_how_to_get_them(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "make study" in text and "|" not in text
