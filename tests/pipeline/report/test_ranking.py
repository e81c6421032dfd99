from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.findings import evidence, means, orders, verdicts
from pipeline.record import Interval
from pipeline.report import ranking
from tests.pipeline.report import factory


def test_overlapping_intervals_share_a_rank() -> None:
    values = [factory.interval(v, 0.1) for v in (1.0, 1.15, 2.0, 1.3)]
    assert orders.ranks(values) == [1, 1, 4, 2]


def test_rank_is_one_plus_those_wholly_below() -> None:
    values = [factory.interval(v, 0.01) for v in (3.0, 1.0, 2.0)]
    assert orders.ranks(values) == [3, 1, 2]


def rankings(records: list, folder: Path) -> dict[str, ranking.Ranking]:
    rows = evidence.load(factory.store(records, folder))
    return {found.title: found for found in ranking.rankings(rows, evidence.labels(rows))}


def test_slowing_a_technique_down_costs_it_its_rank(tmp_path: Path) -> None:
    def order(ratio: float, folder: str) -> list[str]:
        records = [factory.timed("full", 512, 1.0), factory.timed("sliding_window", 512, ratio)]
        return [line[1] for line in rankings(records, tmp_path / folder)["Speed, 512 tokens, batch 1"].table.rows]

    assert order(0.5, "before") == ["sliding_window", "full"]
    assert order(1.5, "after") == ["full", "sliding_window"]


def test_what_was_not_measured_is_named_beside_the_ranking(tmp_path: Path) -> None:
    skipped = factory.make(factory.cell("no_cache"), status="skipped", reason="too slow", remedy="time")
    found = rankings([factory.timed("full"), factory.timed("sliding_window"), skipped], tmp_path)
    assert found["Speed, 512 tokens, batch 1"].absent == "Not ranked here: no_cache (skipped)."


def test_quality_ranks_the_smallest_loss_first(tmp_path: Path) -> None:
    losses = {"full": 0.0, "sliding_window": 0.7, "random_eviction": 0.9}
    found = rankings([factory.judged(name, loss=loss) for name, loss in losses.items()], tmp_path)
    for title in ("Recall", "Text"):
        table = found[f"{title}, 512 tokens, batch 1"].table
        assert [line[1] for line in table.rows] == ["full", "sliding_window", "random_eviction"]


def test_one_technique_alone_is_not_ranked(tmp_path: Path) -> None:
    assert rankings([factory.timed("full")], tmp_path) == {}


def test_the_mean_over_tasks_is_that_of_their_items() -> None:
    tasks = [factory.task_quality("single_needle", "query_aware", loss) for loss in (0.2, 0.6)]
    mean = means.mean_difference(tasks)
    assert mean is not None
    assert mean.estimate == pytest.approx(-0.4)
    assert mean.low < -0.4 < mean.high and mean.n == factory.N_ITEMS


def test_quality_is_ranked_by_the_query_agnostic_score(tmp_path: Path) -> None:
    of = factory.cell("sliding_window", model="tiny", workload="quality")
    quality = factory.quality(0.8)
    perfect = [factory.task_quality(name, "query_aware", 0.0) for name in factory.TASKS]
    other = [*perfect, *(task for task in quality.tasks if task.protocol == "query_agnostic")]
    records = [factory.make(of, quality=quality.model_copy(update={"tasks": t})) for t in (quality.tasks, other)]
    rows = [evidence.load(factory.store([r], tmp_path / str(i)))[0] for i, r in enumerate(records)]
    assert means.recall_loss(rows[0]) == means.recall_loss(rows[1])


def test_spread_is_p90_over_p50_inside_its_interval() -> None:
    steady = means.spread([1.0] * 11)
    wide = means.spread([float(i) for i in range(1, 12)])
    assert steady is not None and (steady.estimate, steady.low, steady.high) == (1.0, 1.0, 1.0)
    assert wide is not None and wide.estimate == pytest.approx(10 / 6)
    assert wide.low < wide.estimate < wide.high
    assert means.spread([1.0]) is None


def test_a_spread_that_the_same_work_shows_too_is_no_difference() -> None:
    full, unsteady = factory.interval(1.05, 0.01), factory.interval(1.30, 0.02)
    assert verdicts.stability(unsteady, full, factory.interval(1.06, 0.01)) == verdicts.UNSTEADIER
    assert verdicts.stability(full, unsteady, factory.interval(1.31, 0.01)) == verdicts.STEADIER
    assert verdicts.stability(unsteady, full, factory.interval(1.40, 0.01)) == verdicts.NO_DIFFERENCE
    assert verdicts.stability(factory.interval(1.07, 0.02), full, full) == verdicts.NO_DIFFERENCE


def test_one_sample_is_not_ranked_and_says_so(tmp_path: Path) -> None:
    of = factory.cell("no_cache")
    single = factory.cost(of, 3.0).model_copy(update={"tpot_ratio": factory.interval(3.0, 0.0, n=1)})
    records = [factory.timed("full"), factory.timed("sliding_window"), factory.make(of, cost=single)]
    found = rankings(records, tmp_path)["Speed, 512 tokens, batch 1"]
    assert found.absent == "Not ranked here: no_cache (one sample)."
    assert len(found.table.rows) == 2


def test_an_interval_is_ranked_by_its_ends_not_by_its_estimate() -> None:
    wide = Interval(estimate=2.0, low=0.5, high=3.5, n=4)
    assert orders.ranks([factory.interval(1.0, 0.1), wide]) == [1, 1]


def test_what_the_full_cache_cannot_do_is_in_no_mean_and_no_verdict(tmp_path: Path) -> None:
    judged = factory.judged("sliding_window")
    assert judged.quality
    first = judged.quality.tasks[0].task

    def mean_gain(failing: set[str], folder: str) -> Interval | None:
        tasks = [
            task.model_copy(update={"accuracy_full": 0.1} if task.task in failing else {})
            for task in judged.quality.tasks
        ]
        changed = judged.model_copy(update={"quality": judged.quality.model_copy(update={"tasks": tasks})})
        (row,) = evidence.load(factory.store([changed], tmp_path / folder))
        answered = {task.task for task in means.answered(row.record.quality.tasks, means.STRICTER)}
        assert answered == {task.task for task in tasks} - failing
        assert {verdicts.recall(task) for task in tasks if task.task in failing} <= {verdicts.NOT_ANSWERED}
        return means.recall_gain(row)

    assert mean_gain(set(), "all") and mean_gain({first}, "some")
    assert mean_gain({task.task for task in judged.quality.tasks}, "none") is None
