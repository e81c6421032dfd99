"""The grid of the ablations: one process, every point once, and pruning leaves what is a point."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline import ablations, record
from pipeline.refusals import CONF
from tests.conftest import CELLS

INSTANT = ["profile=smoke", f"{CELLS}.instant"]


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another list of points, with its records under `tmp_path / "results"`."""

    def put(*grids: str) -> None:
        shared = OmegaConf.load(CONF / "ablation.yaml").shared
        OmegaConf.save({"shared": f"{shared} results_dir={tmp_path / 'results'}", "grids": list(grids)}, file)

    file = tmp_path / "ablation.yaml"
    monkeypatch.setattr(ablations, "POINTS", file)
    return put


def found(tmp_path: Path) -> set[tuple[str, int | None]]:
    return {(item.cell.strategy, item.cell.kv_budget) for item in record.read_all(tmp_path / "results")}


@pytest.mark.slow
def test_every_listed_point_composes_and_asks_for_quality_alone():
    cells = [cell for experiment in ablations.points([]) for cell in experiment.cells()]
    assert len(cells) == len(set(cells)) > 50
    assert {(cell.level, cell.workload, cell.model, cell.seq_len) for cell in cells} == {
        ("ablation", "budgets", "tiny", 512)
    }
    assert {cell.kv_budget for cell in cells if cell.strategy == "knorm"} == {26, 51, 128, 384}


def test_what_two_grids_share_is_measured_once_and_a_second_time_not_at_all(listed, tmp_path, capsys):
    listed("strategy=sliding_window,tova strategy.keep_ratio=0.1,0.25", "strategy=sliding_window,full")
    assert ablations.main(INSTANT) == 0
    assert found(tmp_path) == {(name, n) for name in ("sliding_window", "tova") for n in (51, 128)} | {("full", None)}
    assert ablations.main(INSTANT) == 0
    assert capsys.readouterr().err.count("already measured") == 5


def test_pruning_removes_other_budgets_and_variants_and_no_point(listed, tmp_path):
    listed("strategy=sliding_window strategy.keep_ratio=0.1,0.25,0.5", "strategy=h2o strategy/schedule=at_prefill")
    ablations.main(INSTANT)
    listed("strategy=sliding_window strategy.keep_ratio=0.1,0.25", "strategy=full")
    ablations.main(INSTANT)
    assert len(found(tmp_path)) == 5
    ablations.main([*INSTANT, "prune=true"])
    assert found(tmp_path) == {("sliding_window", 51), ("sliding_window", 128), ("full", None)}


def test_a_point_that_is_refused_is_named_before_any_is_measured(listed, tmp_path, capsys):
    listed("strategy=sliding_window", "strategy=snapkv strategy.keep_ratio=0.05")
    with pytest.raises(SystemExit, match="2"):
        ablations.main(INSTANT)
    assert "window_size=32: fills strategy.keep_ratio=0.05" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
