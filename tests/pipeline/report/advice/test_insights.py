"""Insights are rules over records: alter the records and the sentences change."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.findings import evidence
from pipeline.record import Record
from pipeline.report.advice import use_cases as advice
from tests.pipeline.report import factory


def insights(records: list[Record], folder: Path) -> list[str]:
    baseline = [factory.timed("full", 4096, 1.0), factory.judged("full")]
    rows = evidence.load(factory.store([*baseline, *records], folder / "results"))
    (found,) = advice.advised(rows, folder / "reports")
    return found.insights


def both(name: str, ratio: float = 0.9, loss: float = 0.0, kv_budget: int = 1024) -> list[Record]:
    return [factory.timed(name, 4096, ratio, kv_budget=kv_budget), factory.judged(name, 512, loss)]


def said(lines: list[str], start: str) -> str:
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_the_cheapest_within_each_bound_is_named(tmp_path: Path) -> None:
    lines = insights([*both("tova"), *both("h2o", loss=0.06, kv_budget=512)], tmp_path)
    assert "`tova`, 24.8" in said(lines, "Fewest bytes with at least 98.0")
    assert "`h2o`, 12.4" in said(lines, "Fewest bytes with at least 90.0")
    worse = insights([*both("tova", loss=0.3), *both("h2o", loss=0.3)], tmp_path / "worse")
    assert said(worse, "Fewest bytes").endswith("(query-agnostic): no technique.")


@pytest.mark.parametrize(("ratio", "slower", "faster"), [(1.5, True, False), (1.0, False, False), (0.5, False, True)])
def test_slow_and_fast_are_called_so(tmp_path: Path, ratio: float, slower: bool, faster: bool) -> None:
    lines = insights(both("tova", ratio), tmp_path)
    assert ("`tova`" in said(lines, "Decode steps found slower")) == slower
    assert ("`tova`" in said(lines, "Decode steps found faster")) == faster


def test_a_verdict_at_a_shorter_length_is_not_lost(tmp_path: Path) -> None:
    lines = insights([*both("tova", 1.0), factory.timed("tova", 1024, 1.5), *both("h2o", 1.2)], tmp_path)
    slower = [line for line in lines if line.startswith("Decode steps found slower")]
    assert "at 4,096 tokens and batch 1, of 2 techniques there: [`h2o`](" in slower[0]
    assert "at 1,024 tokens and batch 1, of 1 technique there: [`tova`](" in slower[1]
    assert "`tova`" not in slower[0] and slower[1].endswith(") (1.50×).")


def test_what_slows_decoding_is_told_by_part_and_length(tmp_path: Path) -> None:
    def encoded(name: str, ratio: float) -> list[Record]:
        coded = {"scorer": {"_target_": "a.Coded"}}
        made = [*both(name, ratio), factory.timed(name, 1024, 1.5)]
        return [r.model_copy(update={"config": r.config | {"strategy": r.config["strategy"] | coded}}) for r in made]

    lines = insights([*encoded("kv_int8", 1.3), *encoded("kv_int4", 0.8), *both("tova")], tmp_path / "slow")
    assert said(lines, "Slower at 4,096 tokens and batch 1, by the part").endswith("1 of 2 that change `scorer`.")
    assert said(lines, "Slower at 1,024 tokens and batch 1, by the part").endswith("2 of 2 that change `scorer`.")
    quick = insights([*encoded("kv_int8", 0.9)[:2], *both("tova")], tmp_path / "quick")
    assert not any(line.startswith("Slower at") for line in quick)


def test_what_saves_bytes_and_loses_recall_is_named(tmp_path: Path) -> None:
    lines = insights([*both("tova", loss=0.4), *both("h2o")], tmp_path)
    line = said(lines, "Of 2 techniques that hold 50.0")
    assert "`tova` (60.0" in line and "`h2o`" not in line


def test_whether_the_question_was_known_matters_where_recall_differs(tmp_path: Path) -> None:
    lines = insights([*both("tova", loss=0.6), *both("h2o")], tmp_path)
    line = said(lines, "Whether the question is known")
    assert "for 1 of 2 techniques: `tova` (70.0" in line and "before, 40.0" in line and "`h2o`" not in line


def test_beating_chance_is_a_verdict_item_by_item(tmp_path: Path) -> None:
    lines = insights(
        [*both("random_eviction", loss=0.5), *both("h2o", loss=0.2), *both("tova", loss=0.5), *both("knorm", loss=0.9)],
        tmp_path,
    )
    line = said(lines, "Recall accuracy (query-agnostic) against evicting at random")
    assert "better: `h2o` (+0.30)" in line
    assert "no difference found: `tova` (+0.00)" in line
    assert "worse: `knorm` (−0.40)" in line
    assert not any("at random" in line for line in insights(both("h2o"), tmp_path / "without"))


def test_one_that_is_never_the_better_choice_is_dominated(tmp_path: Path) -> None:
    lines = insights([*both("tova"), *both("h2o", loss=0.4)], tmp_path / "a")
    assert said(lines, "Dominated, by another").endswith("at every length that both were timed at: by `tova`: `h2o`.")
    faster = insights([*both("tova"), *both("h2o", ratio=0.5, loss=0.4)], tmp_path / "b")
    smaller = insights([*both("tova"), *both("h2o", loss=0.4, kv_budget=512)], tmp_path / "c")
    for lines in (faster, smaller):
        assert said(lines, "No technique is dominated")


def test_who_is_beaten_at_one_length_only_is_not_dominated(tmp_path: Path) -> None:
    lossy = both("h2o", loss=0.4)
    apart = [factory.timed("tova", 1024, 1.5), factory.timed("h2o", 1024, 0.9)]
    assert said(insights([*both("tova"), *lossy, *apart], tmp_path / "faster_there"), "No technique is dominated")
    larger = [factory.timed("tova", 1024, 0.9, kv_budget=512), factory.timed("h2o", 1024, 0.9, kv_budget=256)]
    assert said(insights([*both("tova"), *lossy, *larger], tmp_path / "smaller_there"), "No technique is dominated")
    same = [factory.timed("tova", 1024), factory.timed("h2o", 1024)]
    assert "by `tova`: `h2o`" in said(insights([*both("tova"), *lossy, *same], tmp_path / "alike"), "Dominated")
    longer = [factory.timed("h2o", 8192, 0.5)]
    assert "by `tova`: `h2o`" in said(insights([*both("tova"), *lossy, *longer], tmp_path / "longer"), "Dominated")


def test_the_nearer_ceiling_follows_the_shares(tmp_path: Path) -> None:
    line = said(insights(both("tova"), tmp_path), "With the full cache")
    assert "decoding comes nearer to the limit of bandwidth than to computing (70.0" in line
    assert "reading the prompt comes nearer to the limit of computing than to bandwidth" in line
    full = factory.timed("full", 8192, 1.0)
    assert full.cost
    starved = full.model_copy(update={"cost": full.cost.model_copy(update={"decode_bandwidth_share": 0.0})})
    line = said(insights([*both("tova"), starved], tmp_path / "starved"), "With the full cache")
    assert "at [8,192]" in line and "decoding comes nearer to the limit of computing than to bandwidth" in line
