from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipeline.findings import evidence
from pipeline.record import Record
from pipeline.report import drawing, scales
from pipeline.report.tokens import step_plots
from tests.pipeline.report import factory

NAMES = ("full", "no_cache", "sliding_window", "attention_sink", "random_eviction")


def test_techniques_of_one_figure_differ_in_colour_and_in_shape() -> None:
    for one, other in itertools.combinations(NAMES, 2):
        assert drawing.mark(one).color != drawing.mark(other).color
    assert len({drawing.mark(name) for name in NAMES}) == len(NAMES)


def test_no_two_published_techniques_look_the_same() -> None:
    names = {path.stem for path in Path("conf/strategy").glob("*.yaml")} - {"native"}  # which architectures bring along
    assert len({drawing.mark(name) for name in names}) == len(names) > 20


def test_a_mark_depends_on_nothing_but_the_name() -> None:
    before = [drawing.mark(name) for name in NAMES]
    drawing.mark("a technique that was added later")
    assert [drawing.mark(name) for name in NAMES] == before
    assert drawing.mark("sliding_window") == drawing.Mark("#E69F00", "^")


@pytest.mark.parametrize("values", [[0.5] * 5, [0.1, 0.11, 0.9], [1.0, 1.0, 0.0, 0.02], [0.4]])
def test_labels_are_moved_apart_in_their_order(values: list[float]) -> None:
    placed = drawing.spread_apart(values, gap=0.1)
    ordered = [place for _, place in sorted(zip(values, placed, strict=True))]
    assert ordered == sorted(ordered)
    assert all(b - a >= 0.1 - 1e-3 for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (0.3, 1.2), (0.1, 80.0), (1e-3, 1e4)])
def test_axes_have_a_handful_of_ticks_however_wide_the_range(low: float, high: float) -> None:
    ticks = scales.round_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)


def test_running_median_ignores_a_single_spike() -> None:
    assert step_plots.running_median([1.0, 1.0, 9.0, 1.0, 1.0]) == [1.0] * 5


def rows(tmp_path: Path, *records: Record) -> list[evidence.Row]:
    return evidence.load(factory.store(list(records), tmp_path))


def test_peak_memory_is_drawn_up_to_the_last_step_that_was_counted(tmp_path: Path) -> None:
    whole, slow = factory.timed("full", 512), factory.timed("no_cache", 512)
    arm = factory.cost(slow.cell, 9.0).technique
    short = slow.model_copy(update={"cost": factory.cost(slow.cell, 9.0).model_copy(
        update={"technique": arm.model_copy(update={"step_peak_memory_bytes": arm.step_peak_memory_bytes[:2]})}
    )})  # fmt: skip
    found = rows(tmp_path, whole, short)
    drawn = step_plots.peak_memory(found, evidence.labels(found))
    assert drawn is not None
    *curves, weights = drawn.axes[0].get_lines()
    recorded = {row.strategy: row.record.cost.technique.step_peak_memory_bytes for row in found if row.record.cost}
    assert sorted(list(curve.get_ydata()) for curve in curves) == sorted(recorded.values())
    assert {len(values) for values in recorded.values()} == {2, factory.N_NEW_TOKENS}
    assert set(weights.get_ydata()) == {factory.WEIGHT_BYTES}


def test_there_is_no_figure_of_memory_that_was_not_counted(tmp_path: Path) -> None:
    record = factory.timed("full", 512)
    cost = factory.cost(record.cell, 1.0)
    uncounted = {"peak_memory_bytes": None, "step_peak_memory_bytes": []}
    bare = record.model_copy(
        update={"cost": cost.model_copy(update={"technique": cost.technique.model_copy(update=uncounted)})}
    )
    found = rows(tmp_path, bare)
    assert step_plots.peak_memory(found, evidence.labels(found)) is None
