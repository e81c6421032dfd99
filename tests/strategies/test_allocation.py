"""Budgets of layers: their mean is the budget that was asked for, and their shape the paper's."""

from __future__ import annotations

import pytest

from strategies.token.pyramid import PyramidAllocation


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 8, 31, 36])
@pytest.mark.parametrize("kv_budget", [33, 64, 129, 1024])
@pytest.mark.parametrize("n_tokens", [None, 1, 1.5, 4, 100])
def test_the_mean_over_layers_is_the_budget_to_within_one_token(n_layers, kv_budget, n_tokens):
    n_tokens = None if n_tokens is None else round(kv_budget * n_tokens)
    budgets = PyramidAllocation()(kv_budget, n_layers, n_tokens=n_tokens, n_protected=32)
    assert abs(sum(budgets) - n_layers * kv_budget) <= 1
    assert len(budgets) == n_layers and min(budgets) >= 32
    assert n_tokens is None or max(budgets) <= n_tokens
    on_a_line = [budgets[0] + (budgets[-1] - budgets[0]) * layer / max(n_layers - 1, 1) for layer in range(n_layers)]
    assert all(abs(one - other) <= 2 for one, other in zip(budgets, on_a_line, strict=True))  # each is a whole number


def test_the_last_layer_has_a_twentieth_of_the_mean_beside_the_window_and_the_first_the_rest():
    budgets = PyramidAllocation()(232, 5, n_tokens=10_000, n_protected=32)  # 200 to be had beside the window
    assert budgets == [32 + 390, 32 + 295, 32 + 200, 32 + 105, 32 + 10]


def test_no_layer_gets_more_than_the_prompt_has():
    budgets = PyramidAllocation()(232, 5, n_tokens=332, n_protected=32)  # 300 of it outside the window
    assert budgets == [332, 282, 232, 182, 132]


def test_a_pyramid_upside_down_is_refused():
    with pytest.raises(ValueError, match=r"allocation\.beta=0\.5: .* valid: 1 or more"):
        PyramidAllocation(beta=0.5)
