from types import SimpleNamespace

import psutil
import pytest

from pipeline import corpus, text, timing
from pipeline.config import Experiment
from pipeline.levels import paired, sides
from pipeline.levels.measured import Measured
from pipeline.levels.paired import measure_cell
from pipeline.memory.measured import Ceilings
from tests.pipeline.small import composed

SMALL = ["model=bench", "model.config.hidden_size=96", "model.config.intermediate_size=128", "workload=cost",
         "model.config.num_hidden_layers=2", "model.config.vocab_size=500", "workload.seq_len=96"]  # fmt: skip


def measured(*overrides: str) -> Measured:
    experiment = Experiment.from_hydra(composed(*overrides))
    return measure_cell(experiment.cells()[0], experiment)


@pytest.mark.parametrize("strategy", ["full", "sliding_window", "attention_sink", "random_eviction", "no_cache"])
def test_cost_is_measured_for_every_technique(strategy: str) -> None:
    found = measured(*SMALL, f"strategy={strategy}", "workload.batch=2")
    assert found.quality is None and found.cost is not None
    held, predicted = found.cost.technique.kv_bytes_held[-1], found.predicted.kv_bytes_held
    assert held == pytest.approx(predicted, rel=0.1)
    assert found.cost.full.kv_bytes_held[-1] >= held
    assert found.cost.decode_bandwidth_share > 0


def test_the_measured_link_becomes_part_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings(1e10, 1e11, 5e10)
    monkeypatch.setattr(paired, "measured_ceilings", lambda dtype, device: ceilings)
    found = measured(*SMALL)
    assert found.cost is not None and found.cost.link_bandwidth_bytes_per_s == 5e10


def test_a_cell_that_would_take_too_long_says_why_and_what_would_help() -> None:
    found = measured(*SMALL, "profile.max_cell_s=1e-9")
    assert found.cost is None and found.quality is None
    assert "needs at least" in found.skipped and "allowed are 1e-09 s" in found.skipped
    assert "workload.seq_len" in found.remedy and "profile.max_cell_s" in found.remedy


@pytest.mark.parametrize(("n_bytes", "missing"), [(0, True), (10**15, False)])
def test_a_cell_that_does_not_fit_is_skipped_before_its_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, n_bytes: int, missing: bool
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))
    sides._loaded.clear()
    found = measured(*SMALL)
    assert bool(sides._loaded) is not missing and (found.cost is None) is missing
    if missing:
        predicted = found.predicted
        needed = predicted.weight_bytes + 4 * predicted.kv_bytes_held
        assert found.skipped == f"needs at least {needed:,} bytes for weights and caches, available are 0"
        assert "dtype" in found.remedy and "workload.seq_len" in found.remedy


def test_an_eight_billion_model_is_counted_without_being_allocated() -> None:
    overrides = ["model=llama_3_1_8b", "workload=cost", "workload.seq_len=1024", "dtype=bfloat16"]
    experiment = Experiment.from_hydra(composed(*overrides, "strategy=sliding_window"))
    bench = paired.Bench.outlined(experiment.cells()[0], experiment)
    assert bench.least_bytes() == pytest.approx(2 * 8_030_261_248 + 3 * 131_072 * 1029 + 131_072 * 256, rel=1e-3)


def test_weights_that_are_loaded_need_no_more_memory() -> None:
    experiment = Experiment.from_hydra(composed(*SMALL))
    cell = experiment.cells()[0]
    sides._loaded.clear()
    before = paired.Bench.outlined(cell, experiment).least_bytes()
    weight_bytes = paired.Bench.of(cell, experiment).predicted.weight_bytes
    assert paired.Bench.outlined(cell, experiment).least_bytes() == before - weight_bytes


def test_cells_do_not_share_one_order_of_the_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[timing.Plan] = []
    monkeypatch.setattr(timing, "measure", lambda *given: plans.append(given[-1]))
    for overrides in ([], ["workload.seq_len=97"], ["strategy=no_cache"], ["seed=1"], ["seed=1"]):
        experiment = Experiment.from_hydra(composed(*SMALL, *overrides))
        paired.Bench.outlined(experiment.cells()[0], experiment).timed({})
    seeds = [plan.seed for plan in plans]
    assert len(set(seeds)) == 4 and seeds[-1] == seeds[-2]


def test_recomputing_is_predicted_to_take_longer_than_any_cache() -> None:
    def least_s(strategy: str) -> float:
        experiment = Experiment.from_hydra(composed(*SMALL, "workload.seq_len=2048", f"strategy={strategy}"))
        return paired.Bench.of(experiment.cells()[0], experiment).least_s()

    assert least_s("no_cache") > 1.5 * least_s("full")


def test_the_baseline_keeps_everything_whatever_the_technique_is() -> None:
    overrides = ["strategy=sliding_window", "strategy/scorer=random", "strategy.kv_budget=32"]
    experiment = Experiment.from_hydra(composed(*SMALL, *overrides))
    bench = paired.Bench.of(experiment.cells()[0], experiment)
    technique, full = bench.arms.technique(8).cache, bench.arms.full(8).cache
    assert technique.layers[0].retention.kv_budget == 32
    assert full.layers[0].retention.kv_budget is None
    assert type(technique.layers[0].retention.scorer) is not type(full.layers[0].retention.scorer)


def test_a_grid_loads_its_model_once() -> None:
    experiment = Experiment.from_hydra(composed(*SMALL, "workload.seq_len=[32,64]"))
    first, second = (paired.Bench.of(cell, experiment).model for cell in experiment.cells())
    assert first is second


def test_half_of_a_short_text_is_scored_whatever_the_profile_would_have() -> None:
    short = ["workload=quality", "workload.tasks=[]", "workload.seq_len=48", "workload.n_text_tokens=512"]
    found = measured(*short).quality
    assert found is not None and found.text is not None
    assert (found.text.n_context, found.text.n_tokens) == (24, 24 * 2)


def test_quality_covers_every_task_under_both_protocols_and_text() -> None:
    found = measured(
        "workload=quality", "workload.seq_len=128", "workload.n_items=2", "strategy=sliding_window"
    ).quality
    assert found is not None and found.text is not None
    assert len({(task.task, task.protocol) for task in found.tasks}) == len(found.tasks) == 12
    assert found.text_source == text.DEFAULT_SOURCE and found.text_sha256 == corpus.corpus_sha256()
