"""The stage of engines: one record for each engine, kept while it holds; and what no engine could run is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline import record
from pipeline.engines import __main__ as stage
from pipeline.engines import vllm
from pipeline.levels.engine import dry_run
from pipeline.record import Record
from pipeline.refusals import CONF

QUICK = "workload=throughput model=tiny profile=smoke workload.batch=2 workload.seq_len=16 workload.n_new_tokens=4"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another list of points, with its records under `tmp_path / "results"`."""

    def put(*lines: str) -> None:
        shared = f"tracking=disabled results_dir={tmp_path / 'results'}"
        OmegaConf.save({"shared": shared, "default": list(lines), "cuda": []}, tmp_path / "engines.yaml")

    monkeypatch.setattr(stage, "POINTS", tmp_path / "engines.yaml")
    return put


def found(tmp_path: Path) -> dict[tuple[str, str], Record]:
    return {(item.cell.engine, item.cell.strategy): item for item in record.read_all(tmp_path / "results")}


def test_one_record_for_each_engine_in_one_run_and_a_second_time_none(listed, tmp_path, capsys) -> None:
    listed(f"{QUICK} engine=hf_generate,hf_batch,hf_continuous,ours", f"{QUICK} engine=ours strategy=no_cache")
    assert stage.main([]) == 0
    records = found(tmp_path)
    assert set(records) == {(name, "full") for name in ("hf_generate", "hf_batch", "hf_continuous", "ours")} | {
        ("ours", "no_cache")
    }
    assert all(item.status == "ok" and item.throughput for item in records.values())
    assert len({tuple(item.throughput.batch.wall_s) for item in records.values() if item.throughput}) == 1  # in one run
    assert stage.main([]) == 0
    assert capsys.readouterr().err.count("already measured") == 5
    assert found(tmp_path) == records


def test_without_its_environment_vllm_is_skipped_with_the_command_and_the_others_are_measured(
    listed, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(vllm.VLLM.__init__.__kwdefaults__, "python", tmp_path / ".venv-vllm/bin/python")
    listed(f"{QUICK} engine=vllm,hf_batch")
    assert stage.main([]) == 0
    skipped, batch = found(tmp_path)["vllm", "full"], found(tmp_path)["hf_batch", "full"]
    assert (skipped.status, skipped.remedy) == ("skipped", "make vllm") and ".venv-vllm" in skipped.reason
    assert batch.status == "ok"


def test_pruning_removes_what_is_no_point_any_more(listed, tmp_path) -> None:
    listed(f"{QUICK} engine=ours", f"{QUICK} engine=ours workload.batch=1")
    stage.main([])
    listed(f"{QUICK} engine=ours")
    stage.main(["prune=true"])
    assert len(record.read_all(tmp_path / "results")) == 1


@pytest.mark.slow
def test_the_points_of_the_project_are_accepted_and_every_engine_is_among_them() -> None:
    rows = stage.rows([])
    assert {row.cell.engine for row in rows} == {file.stem for file in (CONF / "engine").glob("*.yaml")}
    assert len({row.path for row in rows}) == len(rows)
    for members in {row.point: [other for other in rows if other.point == row.point] for row in rows}.values():
        assert len({row.cell.batch for row in members}) == 1


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["level=engine"], "workload.requests=null: level=engine measures a throughput; valid: workload=throughput"),
        (["workload=throughput", "engine=vllm", "strategy=no_cache"],
         "strategy=no_cache: engine=vllm has a cache of its own; valid: strategy=full, or engine=ours"),
        (["workload=throughput", "workload.seq_len=1000"], "seq_len=1000: with 64 tokens more, the model has only"),
    ],
    ids=["no requests", "another cache", "too long"],
)  # fmt: skip
def test_what_no_engine_could_run_is_refused(experiment, overrides: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        dry_run(experiment(*overrides))


def test_an_engine_that_is_not_ours_measures_no_cache(experiment) -> None:
    with pytest.raises(ValueError, match=r"engine=vllm: level=token measures caches in our own loop; valid: engine=ou"):
        experiment("engine=vllm")
