"""The resolved configuration: what the grid is, and what is refused before any work."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline import checks
from pipeline.checks import LONGEST_QUESTION, SHORTEST
from pipeline.config import Task
from tests.conftest import SMALL


def test_one_number_is_a_grid_of_one(experiment):
    assert experiment("workload.seq_len=384").workload.seq_len == [384]


def test_grid_is_every_length_with_every_batch(experiment):
    cells = experiment(*SMALL, "workload.seq_len=[64,128]", "workload.batch=[1,4]").cells()
    assert [(cell.seq_len, cell.batch) for cell in cells] == [(64, 1), (64, 4), (128, 1), (128, 4)]
    assert len({cell.slug for cell in cells}) == 4


def test_budget_is_the_ratio_of_the_prompt(experiment):
    cells = experiment("strategy=sliding_window", "strategy.keep_ratio=0.3", "workload.seq_len=[100,250]").cells()
    assert [cell.kv_budget for cell in cells] == [30, 75]


def test_explicit_budget_wins_over_the_ratio(experiment):
    cells = experiment("strategy=sliding_window", "strategy.kv_budget=128", "workload.seq_len=[256,512]").cells()
    assert [cell.kv_budget for cell in cells] == [128, 128]


def test_full_cache_has_no_budget(experiment):
    assert experiment("strategy=full").cells()[0].kv_budget is None


def test_budget_above_the_prompt_is_accepted(experiment):
    assert experiment("strategy=sliding_window", "strategy.kv_budget=9999").cells()[0].kv_budget == 9999


def test_any_axis_can_be_exchanged(experiment):
    changed = experiment("strategy=sliding_window", "strategy/scorer=sinks").strategy
    assert changed.scorer["_target_"].endswith("SinkScorer")


def test_a_cache_takes_all_axes_or_none(experiment):
    assert experiment("strategy=hf_dynamic").strategy.scorer is None
    with pytest.raises(
        ValueError, match=r"^strategy.cache=.*dynamic_cache: takes no axes, got scorer; valid: strategy/cache=slots"
    ):
        experiment("strategy=hf_dynamic", "+strategy/scorer=random")
    with pytest.raises(ValueError, match=r"^strategy.cache=.*dynamic_cache: takes no axes, got allocation, .*; valid"):
        experiment("strategy=full", "strategy/cache=hf_dynamic")


def test_what_the_command_line_changed_of_a_cache_is_part_of_the_name(experiment):
    assert experiment("strategy=hf_quantized").strategy.variant == "hf_quantized"
    changed = experiment("strategy=hf_quantized", "strategy.cache.nbits=2", "strategy.cache.backend=hqq").strategy
    assert changed.variant == "hf_quantized+cache.backend=hqq+cache.nbits=2"
    assert experiment("strategy=hf_sliding", "strategy/cache=kvpress").strategy.variant == "hf_sliding+cache=kvpress"


def test_a_changed_part_goes_by_the_option_that_it_is_most_like(experiment):
    for option in ("int4", "int8"):
        changed = experiment("strategy=snapkv", f"strategy/encoding={option}").strategy
        assert changed.variant == f"snapkv+encoding={option}"


@pytest.mark.parametrize("budget", ["strategy.kv_budget=64", "strategy.keep_ratio=0.5"])
def test_a_cache_that_never_evicts_takes_no_budget(experiment, budget):
    assert experiment("strategy=hf_sliding", budget)
    for technique, valid in (("hf_dynamic", "null$"), ("full", "null, or another strategy/schedule$")):
        with pytest.raises(ValueError, match=f"{technique} never evicts; valid: {valid}"):
            experiment(f"strategy={technique}", budget)


def test_any_cache_can_be_the_baseline(experiment):
    against = experiment("strategy=sliding_window", "strategy@baseline=hf_dynamic")
    assert against.baseline.cache["_target_"].endswith("dynamic_cache")
    assert "scorer" in against.strategy.cache


def test_baseline_does_not_follow_the_strategy(experiment):
    baseline = experiment("strategy=sliding_window", "strategy/scorer=sinks").baseline
    assert baseline.name == "full"
    assert baseline.kv_budget is baseline.keep_ratio is None


def test_experiment_is_frozen(experiment):
    with pytest.raises(ValidationError, match="frozen"):
        experiment().seed = 1


def test_learned_positions_end_hard_and_rotary_ones_do_not(experiment):
    assert experiment("model=gpt2", "workload=cost", "profile=smoke", "workload.seq_len=1019")
    with pytest.raises(ValueError, match="valid: at most 1019"):
        experiment("model=gpt2", "workload=cost", "profile=smoke", "workload.seq_len=1020")
    assert experiment("model=tiny", "workload=cost", "workload.seq_len=4096")


@pytest.mark.parametrize(("measure", "n_following"), [("quality", 16), ("cost", 33), ("cost,quality", 33)])
def test_positions_hold_what_follows_the_prompt_and_text_lies_within_it(experiment, measure, n_following):
    """A question of 8 keys is fed again, or tokens are generated; only the longest prompt decides."""
    asked = ("model=gpt2", "model.source=hub", f"workload.measure=[{measure}]", "workload.n_new_tokens=33")
    most = 1024 - n_following
    assert experiment(*asked, "workload.n_text_tokens=500", f"workload.seq_len=[256,{most}]")
    with pytest.raises(ValueError, match=f"seq_len={most + 1}: with {n_following} .*valid: at most {most}"):
        experiment(*asked, f"workload.seq_len=[256,{most + 1}]")


def test_tasks_and_their_shortest_lengths_are_those_of_the_generators():
    from pipeline.tasks import TASKS

    assert set(get_args(Task)) == set(TASKS)
    assert {name: 2 * (task.n_facts + task.n_asked) for name, task in TASKS.items()} == SHORTEST
    assert max(2 * task.n_asked for task in TASKS.values()) == LONGEST_QUESTION


def test_a_task_that_does_not_fit_its_length_is_refused_with_its_minimum(experiment):
    assert experiment("workload.tasks=[multi_query]", "workload.seq_len=80")
    with pytest.raises(ValueError, match=r"^workload.seq_len=79: too short for multi_query; valid: at least 80"):
        experiment("workload.tasks=[single_needle,multi_query]", "workload.seq_len=[512,79]")


def test_positions_of_a_local_folder_are_those_of_its_config(experiment, tmp_path):
    """Looked-up positions (GPT-2) end hard, rotary ones do not, whatever the YAML knows of them."""
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # whole, and empty
    asked = ("model=hub", f"model.path={tmp_path}", "workload=cost", "profile=smoke")
    write = (tmp_path / "config.json").write_text
    write('{"model_type": "gpt2", "n_positions": 256}')
    checks.check_shape(experiment(*asked, "workload.seq_len=251"))
    with pytest.raises(ValueError, match=r"seq_len=252: .* only 256 positions; valid: at most 251"):
        checks.check_shape(experiment(*asked, "workload.seq_len=252"))
    write('{"model_type": "llama", "max_position_embeddings": 256}')
    checks.check_shape(experiment(*asked, "workload.seq_len=252"))
    write('{"model_type": "poem"}')
    with pytest.raises(ValueError, match=f"model.path={tmp_path}: .*; valid: .* a readable config.json"):
        checks.check_shape(experiment(*asked))


def test_everything_is_checked_without_torch():
    code = (
        "import sys; from hydra import compose, initialize_config_dir; from pipeline.refusals import CONF\n"
        "from pipeline.config import Experiment\n"
        "with initialize_config_dir(str(CONF), version_base='1.3'): Experiment.from_hydra(compose('config'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
