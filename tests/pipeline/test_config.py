"""The resolved configuration: what the grid is, and what is refused before any work."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

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


def test_scored_text_counts_against_the_positions(experiment):
    text = ("model=gpt2", "model.source=hub", "workload.measure=[quality]", "workload.n_text_tokens=500")
    with pytest.raises(ValueError, match="valid: at most 524"):
        experiment(*text, "workload.seq_len=525")


def test_task_names_are_those_of_the_generators():
    from pipeline.tasks import TASKS

    assert set(get_args(Task)) == set(TASKS)


def test_everything_is_checked_without_torch():
    code = (
        "import sys; from hydra import compose, initialize_config_dir; from pipeline.refusals import CONF\n"
        "from pipeline.config import Experiment\n"
        "with initialize_config_dir(str(CONF), version_base='1.3'): Experiment.from_hydra(compose('config'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
