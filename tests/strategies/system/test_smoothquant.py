from __future__ import annotations

import copy

import pytest
import torch

from strategies.system.linears import matrix, observe
from strategies.system.norms import fed_by_norms, weight_offset
from strategies.system.smoothquant import GRID, Smooth, alpha_errors, best_alpha
from strategies.system.w8a8 import W8A8
from tests.strategies.system.smooth_models import KINDS, build, logits, prompt, without_known_norms

IDS = prompt(2, 48, seed=1)


def largest_activations(model):
    """By the first reader of each norm, [n_in]."""
    first = {next(iter(fed.consumers)) for fed in fed_by_norms(model)}
    found = {}
    observe(model, IDS, lambda name, entering: found.update({name: entering.abs().amax((0, 1))}))
    return [largest for name, largest in found.items() if name in first]


def largest_weights(model):
    columns = [
        [matrix(linear).detach().abs().amax(0) for linear in fed.consumers.values()] for fed in fed_by_norms(model)
    ]
    return [torch.stack(each).amax(0) for each in columns]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, None])
def test_the_function_stays_what_it_was(kind, alpha):
    model = build(kind)
    smoothed = copy.deepcopy(model)
    Smooth(alpha)(smoothed, IDS)
    torch.testing.assert_close(logits(smoothed, prompt(2, 32)), logits(model, prompt(2, 32)), atol=1e-4, rtol=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), smoothed.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_divided_by_the_factor_of_the_paper(kind):
    """s_j = max|X_j|^α / max|W_j|^(1 − α), W_j over all readers of the norm."""
    model, alpha = build(kind), 0.7
    activations, weights = largest_activations(model), largest_weights(model)
    Smooth(alpha)(model, IDS)
    found = zip(largest_activations(model), largest_weights(model), strict=True)
    for (smoothed, grown), activation, weight in zip(found, activations, weights, strict=True):
        factors = activation**alpha / weight ** (1 - alpha)
        torch.testing.assert_close((smoothed, grown), (activation / factors, weight * factors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "n_norms"), [("llama", 4), ("gpt2", 4), ("gemma2", 4)])
def test_two_norms_of_each_block_feed_attention_and_mlp(kind, n_norms):
    fed = fed_by_norms(build(kind))
    assert len(fed) == n_norms
    readers = [name.rsplit(".", 1)[1] for each in fed[:2] for name in each.consumers]
    assert readers == (["c_attn", "c_fc"] if kind == "gpt2" else ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])


@pytest.mark.parametrize("kind", KINDS)
def test_gemmas_norms_add_one_to_their_weight(kind):
    assert {weight_offset(fed.norm) for fed in fed_by_norms(build(kind))} == {float(kind.startswith("gemma"))}


def test_alpha_is_the_one_of_the_grid_that_misses_least():
    model = build("llama")
    errors = alpha_errors(model, IDS)
    assert list(errors) == list(GRID) and len(set(errors.values())) == len(GRID)
    smooth = Smooth()
    smooth(model, IDS)
    assert smooth.chosen == min(errors, key=errors.get) == best_alpha(build("llama"), IDS)


def test_looking_for_alpha_changes_nothing():
    model = build("gpt2")
    best_alpha(model, IDS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build("gpt2").parameters(), strict=True))


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    for refused in (lambda: Smooth(alpha), lambda: alpha_errors(build("llama"), IDS, (0.5, alpha))):
        with pytest.raises(ValueError, match=rf"^alpha={alpha}: .*; valid: 0 … 1, or null"):
            refused()


@pytest.mark.parametrize("ids", [None, torch.empty(1, 0, dtype=torch.long)])
def test_an_empty_calibration_is_refused(ids):
    with pytest.raises(ValueError, match=r"^calibration=empty: .*; valid: at least one token"):
        Smooth(0.5)(build("llama"), ids)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match=r"^grid=\[\]"):
        best_alpha(build("llama"), IDS, ())


def test_blocks_of_an_unknown_kind_are_refused():
    with pytest.raises(
        ValueError, match=r"^model=CohereForCausalLM: CohereDecoderLayer .*; valid: blocks like Llama's"
    ):
        Smooth(0.5)(without_known_norms(), IDS)


def test_after_quantisation_it_is_too_late():
    model = build("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"^model=LlamaForCausalLM: model.layers.1.mlp.up_proj is held by another"):
        Smooth(0.5)(model, IDS)
    with pytest.raises(ValueError, match=r"^model=LlamaForCausalLM: no layer with plain weights"):
        W8A8()(model := build("llama"), None)
        Smooth(0.5)(model, IDS)
