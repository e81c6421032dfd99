"""What figures show, and what they say that they show, follows from the records."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline.findings import evidence
from pipeline.findings import quantities as q
from pipeline.record import Items, Record
from pipeline.report import captions, render
from pipeline.report.tokens import ceiling_plots, cost_plots, depth_plots, figures, step_plots
from tests.pipeline.report import factory

LENGTHS = (512, 1024, 2048)


def rows(folder: Path, *records: Record) -> list[evidence.Row]:
    return evidence.load(factory.store(list(records), folder))


def texts(folder: Path, *records: Record) -> dict[str, str]:
    """Alternative texts of the figures of the one setting there is, by file name."""
    found = rows(folder, *records)
    drawn = figures.of_setting(found, evidence.labels(found))
    return {name: text.replace(q.GLUE, " ") for name, text, _ in drawn}


def test_the_fullest_point_is_where_most_techniques_are_and_not_the_longest(tmp_path: Path) -> None:
    found = rows(tmp_path, *(factory.timed(name, n) for name in ("full", "tova") for n in (512, 1024)),
                 factory.timed("tova", 4096))  # fmt: skip
    assert {row.point for row in evidence.fullest(found, found)} == {(1024, 1)}


def test_what_was_skipped_counts_for_the_fullest_point(tmp_path: Path) -> None:
    skipped = factory.make(factory.cell("tova", 1024), status="skipped", reason="too slow", remedy="time")
    found = rows(tmp_path, factory.timed("full", 512), factory.timed("tova", 512), factory.timed("full", 1024), skipped)
    timed = [row for row in found if row.record.cost]
    assert {row.point for row in evidence.fullest(found, timed)} == {(1024, 1)}
    assert {row.point for row in evidence.fullest(timed, timed)} == {(512, 1)}
    assert evidence.fullest(found, []) == []


@pytest.mark.usefixtures("undrawn")
def test_one_long_record_changes_no_summary(tmp_path: Path) -> None:
    shared = [factory.timed(name, 1024, ratio) for name, ratio in (("full", 1.0), ("tova", 0.5), ("snapkv", 0.6))]
    factory.store([*shared, factory.timed("paged", 1024, 1.2), factory.timed("paged", 4096, 1.2)], tmp_path / "results")
    text = render.render(tmp_path / "results", tmp_path / "reports")[render.REPORT].decode()
    first = text[: text.index("## How to read this")]
    assert "**Cost at 1,024 tokens and batch 1**" in first and "4,096" not in first
    assert "**Speed, 1,024 tokens, batch 1**" in text


def test_texts_of_figures_follow_the_records(tmp_path: Path) -> None:
    slow = texts(tmp_path / "slow", factory.timed("full", ratio=1.0), factory.timed("tova", ratio=1.7))
    fast = texts(tmp_path / "fast", factory.timed("full", ratio=1.0), factory.timed("tova", ratio=0.4))
    where = "decode step over the full cache's, 512 tokens and batch 1"
    assert slow["decode_ratio"] == f"{where}: from 1.00× (full) to 1.70× (tova)"
    assert fast["decode_ratio"] == f"{where}: from 0.40× (tova) to 1.00× (full)"
    assert set(slow) == {"decode_ratio", "predicted", "roofline", "step_latency", "step_bytes", "step_memory"}
    assert all(slow[name] != fast[name] for name in ("predicted", "roofline", "step_latency"))


def test_a_span_leaves_out_what_is_undefined() -> None:
    assert captions.span({"a": float("nan"), "b": 2.0}, q.ratio) == "2.00× (b)"
    assert captions.span({"a": float("nan")}, q.ratio) == "undefined"


def marks(drawn: Figure, panel: int) -> set[float]:
    """Places along x of everything that has a mark, in one panel."""
    lines = [line for line in drawn.axes[panel].get_lines() if line.get_marker() not in {"None", ""}]
    return {round(float(x), 6) for line in lines for x in line.get_xdata()}


def test_the_roofline_shows_what_was_achieved_and_the_ceiling(tmp_path: Path) -> None:
    found = rows(tmp_path, factory.timed("full", ratio=1.0))
    cost, predicted = found[0].record.cost, found[0].record.predicted
    assert cost and predicted
    drawn = ceiling_plots.roofline(found, evidence.labels(found))
    achieved = predicted.decode_bytes_per_step / cost.technique.tpot_s[0]
    assert {round(achieved, 6), cost.copy_bandwidth_bytes_per_s} <= marks(drawn, 0)
    assert cost.matmul_flop_per_s in marks(drawn, 1)
    share = q.share(achieved / cost.copy_bandwidth_bytes_per_s)
    assert f"bandwidth in decode {share} (full)" in ceiling_plots.roofline_text(found, evidence.labels(found))


def test_a_rate_above_its_ceiling_is_said(tmp_path: Path) -> None:
    record = factory.timed("full")
    assert record.cost
    for ceiling, said in ((1e15, False), (1e9, True)):
        cost = record.cost.model_copy(update={"matmul_flop_per_s": ceiling})
        found = rows(tmp_path / str(said), record.model_copy(update={"cost": cost}))
        text = ceiling_plots.roofline_text(found, evidence.labels(found))
        assert text.endswith("1 technique above it") == said


def test_the_ceiling_is_the_highest_that_was_measured(tmp_path: Path) -> None:
    busy, idle = factory.timed("full"), factory.timed("snapkv")
    assert busy.cost and idle.cost
    low = busy.cost.model_copy(update={"copy_bandwidth_bytes_per_s": idle.cost.copy_bandwidth_bytes_per_s / 3})
    found = rows(tmp_path, busy.model_copy(update={"cost": low}), idle)
    ceilings = [at for _, (at, _) in ceiling_plots.achieved(found, ceiling_plots.bandwidth)]
    assert ceilings == [idle.cost.copy_bandwidth_bytes_per_s] * 2


def test_what_holds_nothing_is_said_where_no_mark_can_be(tmp_path: Path) -> None:
    found = rows(tmp_path, factory.timed("full"), factory.timed("no_cache", ratio=9.0))
    drawn = ceiling_plots.predicted(found, evidence.labels(found))
    assert [text.get_text() for text in drawn.axes[0].texts] == ["nothing"]


def test_a_single_length_of_one_technique_makes_no_lines_of_all(tmp_path: Path) -> None:
    several = [factory.timed(name, n) for name in ("full", "tova", "h2o") for n in LENGTHS]
    single = [factory.timed(name, 512) for name in ("knorm", "snapkv", "adakv")]
    assert cost_plots.over_lengths(rows(tmp_path / "few", *several[:3], *single)) == []
    lines = cost_plots.over_lengths(rows(tmp_path / "most", *several, *single[:2]))
    assert {row.strategy for row in lines} == {"full", "tova", "h2o"}


def test_curves_by_step_are_those_of_the_rows(tmp_path: Path) -> None:
    found = rows(tmp_path, factory.timed("full", 512), factory.timed("sliding_window", 512))
    drawn = step_plots.kv_bytes(found, evidence.labels(found))
    ends = {line.get_ydata()[-1] for line in drawn.axes[0].get_lines()}
    assert ends == {row.record.cost.technique.kv_bytes_held[-1] for row in found if row.record.cost}


def shallow(strategy: str, lost_below: float) -> Record:
    """Every item whose needle lies above this depth is answered."""
    made = factory.judged(strategy, 512)
    assert made.quality
    depth = [i / factory.N_ITEMS for i in range(factory.N_ITEMS)]
    correct = [float(place >= lost_below) for place in depth]
    items = Items(depth=depth, correct=correct, correct_full=[1.0] * len(depth), nll=[0.1] * 100, nll_full=[0.1] * 100)
    tasks = [task.model_copy(update={"items": items}) for task in made.quality.tasks]
    return made.model_copy(update={"quality": made.quality.model_copy(update={"tasks": tasks})})


def test_recall_by_depth_finds_where_it_is_lost(tmp_path: Path) -> None:
    full, window = rows(tmp_path, shallow("full", 0.0), shallow("sliding_window", 0.8))
    found = depth_plots.by_depth(window, "query_agnostic")
    assert [part.estimate for part in found.values()] == [0.0, 0.0, 0.0, 0.0, 1.0]
    drawn = depth_plots.recall([full, window], evidence.labels([full, window]))
    assert drawn and [axes.get_title() for axes in drawn.axes if axes.get_visible()] == ["sliding_window"]
    assert depth_plots.recall([full], evidence.labels([full])) is None
    assert "in the first 20.0 % of the context 0.00 (sliding_window)" in depth_plots.text(
        [full, window], evidence.labels([full, window])
    ).replace(q.GLUE, " ")


@pytest.mark.usefixtures("undrawn")
def test_of_several_machines_the_one_with_most_records_is_drawn_in_detail(tmp_path: Path) -> None:
    both = [factory.timed("full", ratio=1.0), factory.timed("tova", ratio=0.5)]
    factory.store(both, tmp_path / "results", "machine-a")
    factory.store([*both, factory.timed("h2o", ratio=0.6)], tmp_path / "results", "machine-b")
    files = render.render(tmp_path / "results", tmp_path / "reports")
    drawn = {name for name in files if name.endswith(".png")}
    assert {name.split("-")[0] for name in drawn if "machine-a" in name} == {
        f"figures/{name}" for name in ("decode_ratio", "predicted", "roofline")
    }
    assert any("/step_latency-" in name and "machine-b" in name for name in drawn)
    assert "are those of machine `machine-b`" in files[render.REPORT].decode()
