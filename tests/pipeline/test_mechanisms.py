"""On the embedded model: every gate fails where its mechanism is broken; that they pass is in test_gates.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pipeline import answers, corpus, models, structure
from pipeline.mechanisms import SEQ_LEN, Lab, budgets, eight_bits, family, oracle, question, window
from pipeline.quality import NewDecoder

N_ITEMS = 16


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return models._pretrained(models.folder_of("models/tiny"), torch.float32, "cpu").eval()


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return corpus.held_out_tokens(models.folder_of("models/tiny") / "tokenizer.json")


RANDOM = ("strategy/schedule=at_prefill", "strategy/scorer=random")


def random_for(broken: str, model: Any, technique: str, *overrides: str, kv_budget: int | None = None) -> NewDecoder:
    """Arms as they are, but one technique keeps random tokens."""
    if technique != broken:
        return answers.arm(model, technique, *overrides, kv_budget=kv_budget)
    return answers.arm(model, "snapkv", *RANDOM, kv_budget=kv_budget or SEQ_LEN // 10)


def foolish_oracle(model: Any, technique: str, *overrides: str, kv_budget: int) -> NewDecoder:
    """Guesses, while every scorer knows all."""
    return answers.arm(model, "full") if overrides else random_for(technique, model, technique, kv_budget=kv_budget)


def wasted_budget(model: Any, technique: str, *overrides: str, kv_budget: int) -> NewDecoder:
    """The largest budget is used as the smallest, and all others keep everything."""
    if kv_budget <= SEQ_LEN // 2:
        return answers.arm(model, "full")
    return answers.arm(model, technique, *overrides, kv_budget=26)


@pytest.mark.parametrize(
    ("judged", "broken", "failed"),
    [
        (window, "sliding_window", {1}),  # the needle in the window; the early one may be lost as it should
        (question, "snapkv", {0, 1}),
        (eight_bits, "kv_int8", {0}),
    ],
)
def test_gates_fail_where_random_tokens_are_kept(model, text, judged, broken, failed):
    lab = Lab(model, text, n_items=N_ITEMS, arm=partial(random_for, broken))
    assert failed <= {index for index, found in enumerate(judged(lab)) if not found.passed}


def test_a_window_that_forgets_nothing_fails(model, text):
    early, late = window(Lab(model, text, N_ITEMS, arm=lambda model, *_, **how: answers.arm(model, "full")))
    assert not early.passed and late.passed


@pytest.mark.slow
def test_a_scorer_that_beats_the_oracle_fails(model, text):
    judged = oracle(Lab(model, text, n_items=12, arm=foolish_oracle))
    assert judged and not any(found.passed for found in judged)


def test_a_budget_that_hurts_fails(model, text):
    passed = [found.passed for found in budgets(Lab(model, text, n_items=N_ITEMS, arm=wasted_budget))]
    assert passed == [True, True, True, False]


def test_one_encoding_does_not_lose_to_itself(model, text):
    """Where both are the same technique, it does not."""
    lab = Lab(model, text, N_ITEMS, arm=lambda model, *_: answers.arm(model, "full"))
    assert not any(found.passed for found in structure.outliers(lab))


def test_without_a_sink_a_window_is_as_good_as_sinks(model, text, monkeypatch):
    monkeypatch.setattr(structure, "N_STREAMS", 8)
    monkeypatch.setattr(structure, "N_SCORED", 64)
    monkeypatch.setattr(structure.planted, "attention_sink", lambda model, sink_id: model)
    (plain,) = structure.sinks(Lab(model, text))
    assert not plain.passed


def test_losses_within_chance_pass_and_a_real_one_does_not():
    chance, loss = torch.tensor([1.0, -1.0] * 20), -torch.ones(40)
    judged = family({"chance": chance, "loss": loss})
    assert [(found.name, found.passed) for found in judged] == [("chance", True), ("loss", False)]


def test_needles_at_a_depth_lie_there(model, text):
    lab = Lab(model, text, n_items=20)
    for depth in (0.1, 0.9):
        assert (lab.needles_at(depth).depth - depth).abs().max() < 0.06
