"""Who meets a rule, and who is best within it, follows from the records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.advise import use_cases
from pipeline.advise.candidates import Candidate, bases, candidates, longest, recall_kept
from pipeline.advise.selection import Needs, select
from pipeline.findings import evidence
from pipeline.findings.verdicts import NO_DIFFERENCE, UNDECIDED
from pipeline.record import Record
from tests.pipeline.report import factory

MEMORY, SPEED = Needs(objective="memory"), Needs(objective="speed")


def found(records: list[Record], folder: Path, seq_len: int = 4096, batch: int = 1) -> dict[str, Candidate]:
    rows = evidence.load(factory.store(records, folder / "results"))
    return {one.name: one for one in candidates(rows, bases(rows)[0], seq_len, batch)}


def both(name: str, ratio: float = 0.9, loss: float = 0.0, **changes: Any) -> list[Record]:
    return [factory.timed(name, 4096, ratio, **changes), factory.judged(name, 512, loss)]


def names(of: dict[str, Candidate], needs: Needs) -> list[str]:
    return [one.name for one in select(list(of.values()), needs).fitting]


def test_kept_recall_is_the_share_of_the_full_caches_answers(tmp_path: Path) -> None:
    row = evidence.load(factory.store([factory.judged("tova", 512, 0.25)], tmp_path))[0]
    later, before = recall_kept(row, "query_agnostic"), recall_kept(row, "query_aware")
    assert later and before
    assert later.estimate == pytest.approx(0.75) and before.estimate == pytest.approx(0.88)  # 88 of 100 items
    assert later.low < later.estimate < later.high


def test_a_task_that_the_full_cache_cannot_do_says_nothing(tmp_path: Path) -> None:
    of = factory.judged("tova", 512, 0.25)
    assert of.quality
    tasks = [task.model_copy(update={"accuracy_full": 0.2}) for task in of.quality.tasks]
    record = of.model_copy(update={"quality": of.quality.model_copy(update={"tasks": tasks})})
    row = evidence.load(factory.store([record], tmp_path))[0]
    assert recall_kept(row, "query_agnostic") is None


def test_controls_and_the_full_cache_are_never_selected(tmp_path: Path) -> None:
    controls = ("full", "no_cache", "random_eviction", "oracle", "tova+scorer=random", "oracle+scorer.window_size=8")
    of = found([record for name in (*controls, "tova") for record in both(name, ratio=0.5)], tmp_path)
    assert "full" not in of
    assert {name for name, one in of.items() if one.is_control} == {evidence.label(name) for name in controls[1:]}
    for needs in (MEMORY, SPEED, Needs(objective="quality")):
        selection = select(list(of.values()), needs)
        assert [one.name for one in selection.fitting] == ["tova"] and not selection.missing


def test_each_bound_rules_out_what_misses_it_and_the_nearest_miss_comes_first(tmp_path: Path) -> None:
    records = [*both("good"), *both("lossy", loss=0.5), *both("less_lossy", loss=0.1), *both("slow", 1.4)]
    of = found(records, tmp_path)
    needs = Needs(min_recall=0.95, speed="not_slower", objective="memory")
    selection = select(list(of.values()), needs)
    assert [one.name for one in selection.fitting] == ["good"]
    assert [one.name for one, _ in selection.missing] == ["less_lossy", "slow", "lossy"]
    assert "slower" in selection.missing[1][1][0].said
    assert names(of, needs.model_copy(update={"speed": "faster"})) == ["good"]
    assert names(of, needs.model_copy(update={"max_share": 0.2})) == []
    assert names(of, Needs(max_text_loss=0.03, objective="memory")) == ["good", "less_lossy", "slow"]


def test_noise_does_not_hide_what_the_estimate_says(tmp_path: Path) -> None:
    """A step of a quarter more that wide intervals do not call slower is beyond the bound all the same."""
    noisy = [factory.timed("kv_int8", 4096, 1.25, 0.3), factory.judged("kv_int8")]
    undecided = [factory.timed("kivi", 4096, 1.05, 0.5), factory.judged("kivi")]
    of = found([*noisy, *undecided, *both("kv_int4", 1.01)], tmp_path)
    words = {name: one.timed.verdict for name, one in of.items() if one.timed}
    assert words == {"kv_int8": NO_DIFFERENCE, "kivi": UNDECIDED, "kv_int4": NO_DIFFERENCE}
    asking = [case.needs for case in use_cases.load().use_cases if case.needs.speed == "not_slower"]
    assert len(asking) == 2
    for needs in asking:
        selection = select(list(of.values()), needs)
        assert [one.name for one in selection.fitting] == ["kv_int4"]
        assert all([miss.about for miss in missed] == ["speed"] for _, missed in selection.missing)
    assert names(of, Needs(speed="not_slower", objective="memory")) == ["kv_int4", "kv_int8"]
    assert names(of, Needs(max_step=1.1, objective="memory")) == ["kivi", "kv_int4"]


def test_what_was_not_measured_meets_no_bound(tmp_path: Path) -> None:
    of = found([factory.timed("only_timed", 4096, 0.5), factory.judged("only_judged", 512), *both("tova")], tmp_path)
    needs = Needs(min_recall=0.5, max_share=1, speed="not_slower", objective="speed")
    missing = {one.name: missed for one, missed in select(list(of.values()), needs).missing}
    assert [miss.by for miss in missing["only_timed"]] == [math.inf]
    assert [miss.by for miss in missing["only_judged"]] == [math.inf, math.inf]


def test_one_trial_is_no_speed(tmp_path: Path) -> None:
    record = factory.timed("tova", 4096, 0.5)
    assert record.cost
    one_trial = factory.interval(0.5, math.inf, n=1)
    record = record.model_copy(update={"cost": record.cost.model_copy(update={"tpot_ratio": one_trial})})
    assert found([record], tmp_path)["tova"].decode is None


def test_times_that_intervals_do_not_tell_apart_are_decided_by_bytes(tmp_path: Path) -> None:
    small_but_slower = both("small", 0.9, kv_budget=512)
    of = found([*small_but_slower, *both("large", 0.89)], tmp_path / "near")
    assert names(of, SPEED) == ["small", "large"]
    of = found([*small_but_slower, *both("large", 0.6)], tmp_path / "far")
    assert names(of, SPEED) == ["large", "small"] and names(of, MEMORY) == ["small", "large"]


def test_a_benchmark_speaks_through_our_full_cache_and_not_without_it(tmp_path: Path) -> None:
    beside = factory.benchmarked("tova", ratio=0.45)
    of = found([beside, factory.benchmarked("full", ratio=0.9), factory.timed("tova", 1024, 0.8)], tmp_path / "with")
    assert of["tova"].decode and of["tova"].decode.estimate == pytest.approx(0.5)
    alone = found([beside, factory.timed("tova", 1024, 0.8)], tmp_path / "without")
    assert alone["tova"].decode and alone["tova"].decode.estimate == pytest.approx(0.8)


def test_the_nearest_length_and_batch_speak(tmp_path: Path) -> None:
    records = [factory.timed("tova", n, 0.5 + n / 16384) for n in (512, 2048, 8192)]
    records.append(factory.timed("tova", 8192, 0.3, workload="batched", batch=8))

    def timed_at(seq_len: int, batch: int) -> tuple[int, int]:
        timed = found(records, tmp_path, seq_len, batch)["tova"].timed
        assert timed
        return timed.row.point

    assert [timed_at(n, 1) for n in (100, 1500, 100_000)] == [(512, 1), (2048, 1), (8192, 1)]
    assert timed_at(32768, 16) == (8192, 8)
    rows = evidence.load(tmp_path / "results")
    assert longest(rows, bases(rows)[0]) == 8192


def test_offloaded_bytes_are_held(tmp_path: Path) -> None:
    record = factory.timed("offload", 4096, 1.0)
    assert record.cost
    cost = record.cost
    arm = cost.technique.model_copy(update={"kv_bytes_held": [0], "kv_bytes_offloaded": cost.full.kv_bytes_held[-1]})
    record = record.model_copy(update={"cost": cost.model_copy(update={"technique": arm})})
    (one,) = found([record], tmp_path).values()
    assert one.share == 1 and one.timed and one.timed.elsewhere == 1


def test_the_rules_of_the_report_are_five_and_a_tree() -> None:
    plan = use_cases.load()
    assert [case.title for case in plan.use_cases] == [
        "Throughput service", "Edge device", "Long document", "Chat", "Research",
    ]  # fmt: skip
    assert all(choice.needs for question in plan.tree for choice in question.answers)


def test_a_rule_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    text = use_cases.FILE.read_text().replace("min_recall: 0.95", "min_recall: 95", 1)
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"use_cases\.0\.needs\.min_recall: .* see .*rules\.yaml"):
        use_cases.load(tmp_path / "rules.yaml")
