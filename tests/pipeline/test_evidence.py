from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.findings import evidence
from tests.pipeline.report import factory


def load(records: list, folder: Path) -> list[evidence.Row]:
    return evidence.load(factory.store(records, folder))


def test_share_is_measured_bytes_over_the_full_caches(tmp_path: Path) -> None:
    (row,) = load([factory.timed("sliding_window", 512)], tmp_path)
    assert row.record.cost is not None
    assert row.share == row.record.cost.technique.kv_bytes_held[-1] / row.record.cost.full.kv_bytes_held[-1]


def test_share_of_quality_is_measured_on_the_items_that_were_scored(tmp_path: Path) -> None:
    (row,) = load([factory.judged("sliding_window", 512)], tmp_path)
    assert row.record.quality is not None
    assert row.share is None
    assert evidence.held_share(row.record.quality.tasks) == 0.25
    assert evidence.held_share([]) is None


def test_a_changed_technique_is_named_without_odd_characters() -> None:
    name = "attention_sink+scorer.n_sinks=8+schedule.rate=1e+05"
    assert evidence.changes(name) == ["scorer.n_sinks=8", "schedule.rate=1e+05"]
    assert evidence.label(name) == "attention_sink, scorer.n_sinks=8, schedule.rate=1e+05"
    assert re.fullmatch(r"[\w-]+", evidence.slug(name))


def test_workloads_without_a_common_point_are_one_setting(tmp_path: Path) -> None:
    records = [factory.timed("full", 512), factory.timed("full", 512, batch=4, workload="batched")]
    assert {row.setting.workload for row in load(records, tmp_path)} == {"batched+cost"}


def test_workloads_that_claim_the_same_point_stay_apart(tmp_path: Path) -> None:
    records = [factory.timed("full", 512), factory.timed("full", 512, workload="standard")]
    assert {row.setting.workload for row in load(records, tmp_path)} == {"cost", "standard"}


def test_the_same_cell_of_two_machines_is_never_compared(tmp_path: Path) -> None:
    factory.store([factory.timed("full", 512)], tmp_path, "machine-a")
    rows = load([factory.timed("full", 512)], tmp_path)
    titles = evidence.titles(row.setting for row in rows)
    assert len({row.setting for row in rows}) == 2
    assert {"machine-a" in title for title in titles.values()} == {True, False}


def test_budgets_are_named_only_where_a_strategy_has_several() -> None:
    one, other = ("sliding_window", "25 %"), ("sliding_window", "50 %")
    rows = [row_with(*pair) for pair in (one, other, ("full", ""))]
    assert evidence.labels(rows) == {
        one: "sliding_window 25 %",
        other: "sliding_window 50 %",
        ("full", ""): "full",
    }
    assert evidence.labels([row_with(*one)]) == {one: "sliding_window"}


def row_with(strategy: str, variant: str) -> evidence.Row:
    keep_ratio = float(variant.removesuffix(" %")) / 100 if variant else None
    record = factory.timed(strategy)
    config = record.config | {"strategy": {"keep_ratio": keep_ratio, "kv_budget": None}}
    (setting,) = {evidence.Setting("token", "cost", "bench", "m", "full", "none", "ours", "float32", "cpu", 33, 0)}
    return evidence.Row(record.model_copy(update={"config": config}), Path("x.json"), setting)


def test_no_records_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"results_dir={tmp_path}: no records"):
        evidence.load(tmp_path)
