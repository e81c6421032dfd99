"""The study's table on a very small random GPT-2; a setting that cannot run becomes a row, not an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from benchmarks import study
from pipeline import record
from pipeline.config import Experiment
from pipeline.levels.paired import Bench
from pipeline.refusals import CONF
from pipeline.study import read

SMALL = ["model.config.n_embd=32", "model.config.n_layer=4", "model.config.n_head=2", "model.config.vocab_size=64",
         "workload.n_new_tokens=20", "profile.n_decode_trials=3", "profile.n_bootstrap=50",
         "profile.n_prefill_trials=1", "profile.n_threads=1", "device=cpu"]  # fmt: skip
FEW = ("sinks_4_128", "h2o_32_128", "window_128", "window_256")
HERE = [setting for setting in read().rows if (CONF / "strategy" / f"{setting.strategy}.yaml").exists()]


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Some of the settings, of which one has a technique that is not here."""
    whole = read()
    chosen = [setting for setting in whole.rows if setting.id in FEW]
    absent = chosen[0].model_copy(update={"id": "absent", "strategy": "not_here"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.study.read", lambda: whole.model_copy(update={"rows": [*chosen, absent]}))
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, record.Record | None]]:
    folder = tmp_path_factory.mktemp("results")
    return folder, study.run([*SMALL, f"results_dir={folder}"])


def test_every_setting_that_is_here_becomes_the_record_of_its_row(first) -> None:
    folder, found = first
    assert list(found) == [*FEW, "absent"] and found["absent"] is None
    for setting in (setting for setting in HERE if setting.id in FEW):
        item = found[setting.id]
        assert item is not None and item.status == "ok" and item.cost is not None and item.predicted is not None
        assert setting.is_in(item.model_copy(update={
            "cell": item.cell.model_copy(update={"n_new_tokens": setting.n_new_tokens})
        }))  # fmt: skip
        assert len(item.cost.technique.step_s) == len(item.cost.full.step_s) == 19
    assert len(record.read_all(folder)) == len(FEW)


def test_peak_memory_is_counted_along_the_whole_decoding(first) -> None:
    _, found = first
    cost = found["window_128"].cost
    assert list(cost.technique.peak_memory_by_step) == [0, 1, 8, 14]
    assert cost.full.peak_memory_by_step == cost.full_again.peak_memory_by_step
    assert min(cost.full.step_peak_memory_bytes) > cost.full.kv_bytes_held[-1]


def test_what_is_measured_is_kept_and_only_what_is_missing_is_measured(first) -> None:
    folder, found = first
    gone = next(folder.glob("study/sliding_window/*/*k256*.json"))
    gone.unlink()
    again = study.run([*SMALL, f"results_dir={folder}"])
    assert gone.exists()
    written = {name: item.model_dump_json() for name, item in found.items() if item}  # where NaN equals NaN
    assert {name for name in written if again[name].model_dump_json() != written[name]} == {"window_256"}


def test_a_row_that_cannot_start_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    build = Bench.of

    def of(cell, experiment):
        if cell.strategy.startswith("h2o"):
            raise RuntimeError("no such kernel")
        return build(cell, experiment)

    monkeypatch.setattr(Bench, "of", of)
    found = study.run([*SMALL, f"results_dir={tmp_path}"])
    told = {name: (item.status, item.reason) for name, item in found.items() if item and item.status != "ok"}
    assert told.keys() == {"h2o_32_128"}
    assert all(status == "error" and "no such kernel" in reason for status, reason in told.values())


@pytest.mark.parametrize("setting", HERE, ids=lambda setting: setting.id)
def test_every_setting_fits_the_positions_of_gpt2_and_keeps_its_budget(setting) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = Experiment.from_hydra(compose("config", [*setting.overrides, "device=cpu"]))
    (cell,) = experiment.cells()
    assert (cell.level, cell.model, cell.seq_len) == ("study", "gpt2", 1)
    assert cell.kv_budget == setting.point.get("kv_budget")


def test_no_two_settings_are_one_cell() -> None:
    rows = [study.Row.of(setting, ["device=cpu"]) for setting in HERE]
    assert len({row.path for row in rows}) == len(rows)
