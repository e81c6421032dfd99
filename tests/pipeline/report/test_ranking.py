from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.record import Interval
from pipeline.report import evidence, ranking
from tests.pipeline.report import factory


def test_overlapping_intervals_share_a_rank() -> None:
    values = [factory.interval(v, 0.1) for v in (1.0, 1.15, 2.0, 1.3)]
    assert ranking.ranks(values) == [1, 1, 4, 2]


def test_rank_is_one_plus_those_wholly_below() -> None:
    values = [factory.interval(v, 0.01) for v in (3.0, 1.0, 2.0)]
    assert ranking.ranks(values) == [3, 1, 2]


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
    for title in ("Quality: recall", "Quality: text"):
        table = found[f"{title}, 512 tokens, batch 1"].table
        assert [line[1] for line in table.rows] == ["full", "sliding_window", "random_eviction"]


def test_one_technique_alone_is_not_ranked(tmp_path: Path) -> None:
    assert rankings([factory.timed("full")], tmp_path) == {}


def test_the_interval_of_a_mean_is_never_narrower_than_its_tasks_allow() -> None:
    tasks = [factory.task_quality("single_needle", "query_aware", loss, 0.05) for loss in (0.2, 0.6)]
    mean = ranking.mean_difference(tasks)
    assert mean is not None
    assert (mean.estimate, mean.low, mean.high) == pytest.approx((-0.4, -0.45, -0.35))


def test_spread_is_p90_over_p50() -> None:
    assert ranking.spread([1.0] * 11) == 1.0
    assert ranking.spread([float(i) for i in range(11)]) == pytest.approx(9 / 5)


def test_an_interval_is_ranked_by_its_ends_not_by_its_estimate() -> None:
    wide = Interval(estimate=2.0, low=0.5, high=3.5, n=4)
    assert ranking.ranks([factory.interval(1.0, 0.1), wide]) == [1, 1]
