"""One file for each machine: measured once, kept while it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import layout as benchmark
from pipeline import hardware, layout
from pipeline.layout import AGAIN, REFERENCE, Plan

SMALL = Plan(
    n_layers=2, n_heads=4, n_kv_heads=(4, 2), head_dim=8, seq_len=(16, 40), page_size=4, n_trials=4, n_bootstrap=50
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    benchmark.run(folder, SMALL)
    return folder


def test_every_layout_is_timed_at_every_point_beside_heads_first(results):
    (found,) = layout.read_all(results)
    assert found.environment["hardware_id"] == hardware.hardware_id() and found.plan == SMALL
    assert [(p.n_kv_heads, p.seq_len) for p in found.points] == [(4, 16), (4, 40), (2, 16), (2, 40)]
    for point in found.points:
        assert set(point.append) == {REFERENCE, AGAIN, "tokens_first", "paged"}
        assert set(point.attend) == {*point.append, "heads_first_products", "tokens_first_products"}
        for timed in (*point.append.values(), *point.attend.values()):
            assert len(timed.seconds) == timed.ratio.n == 4 and min(timed.seconds) > 0
            assert timed.ratio.low <= timed.ratio.estimate <= timed.ratio.high
        assert point.append[REFERENCE].ratio.low == point.append[REFERENCE].ratio.high == 1


def test_what_holds_is_kept_and_another_plan_is_measured(results, monkeypatch):
    path = layout.path_of(results, hardware.hardware_id())
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "measured", lambda plan: pytest.fail("measured again"))
        assert benchmark.run(results, SMALL) == path
    assert path.read_bytes() == before
    other = SMALL.model_copy(update={"seq_len": (8,), "n_kv_heads": (2,)})
    assert layout.read(benchmark.run(results, other)).plan == other


def test_the_layouts_and_the_clock_are_in_the_fingerprint_and_the_way_it_is_found_is_not():
    code = benchmark.code_hashes(["benchmarks.layout"], leave_out=benchmark.NO_PART)
    assert {"benchmarks.kv_layouts", "benchmarks.layout", "pipeline.timing", "pipeline.layout"} <= set(code)
    assert not {"pipeline.fingerprint", "pipeline.models", "pipeline.config"} & set(code)


def test_a_corrupt_file_is_named_in_one_line(tmp_path):
    path = layout.path_of(tmp_path, hardware.hardware_id())
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(ValueError, match=rf"^corrupt {path}: \w+: .*; delete it to measure again$"):
        benchmark.run(tmp_path, SMALL)
