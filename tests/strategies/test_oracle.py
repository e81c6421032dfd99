"""The oracle keeps what a plain forward pass over everything says will be attended to."""

from __future__ import annotations

import pytest
import torch

from tests.strategies import techniques
from tests.strategies.models import family, prompt
from tests.strategies.test_laws import stream

N_PROMPT, N_KEPT = 40, 16


@pytest.mark.parametrize("model_name", ["llama", "qwen3", "gpt2"])
def test_the_tokens_that_receive_most_attention_from_what_follows_are_kept(model_name: str) -> None:
    model, ids = family(model_name), prompt(2, 60)
    cache = techniques.build("oracle", model, kv_budget=N_KEPT)
    cache.foresee(model, ids, N_PROMPT)
    with cache.attached(model), torch.inference_mode():
        model(ids[:, :N_PROMPT], past_key_values=cache, slot_cache=cache)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = model(ids, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(before)
    for layer, weight in zip(cache.layers, weights, strict=True):
        n_kv_heads = layer.positions.shape[1]
        received = weight.unflatten(1, (n_kv_heads, -1))[..., N_PROMPT:, :N_PROMPT].sum((2, 3))
        expected = received.topk(N_KEPT, dim=-1).indices.sort(-1).values
        assert torch.equal(layer.positions[..., :N_KEPT], expected)


def test_without_foresight_it_says_what_is_missing() -> None:
    cache = techniques.build("oracle", family("llama"))
    with cache.attached(family("llama")), pytest.raises(ValueError, match=r"valid: cache\.foresee"):
        family("llama")(prompt(1, 10), past_key_values=cache)


def test_foresight_is_used_once_and_leaves_nothing_behind() -> None:
    model, ids = family("llama"), prompt(1, 50)
    cache = techniques.build("oracle", model)
    stream(model, cache, ids, n_prompt=40)
    assert all(layer.foreseen is None for layer in cache.layers)
    cache.reset()
    with cache.attached(model), pytest.raises(ValueError, match="does not know what follows"):
        model(ids, past_key_values=cache)
