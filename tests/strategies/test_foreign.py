"""Caches of other packages: the stock model where they keep everything, the brute-force reference where they do not."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.decoding import Decoder
from strategies.foreign import quantized
from strategies.foreign.kvpress import PressedCache
from tests.strategies import reference, techniques
from tests.strategies.models import family, prompt

WINDOW = 12
FULL_ATTENTION = ["gpt2", "llama", "qwen3"]
KEEPING = ["hf_dynamic", "hf_static"]
RUNNING = [*KEEPING, "hf_sliding"]
needs_quanto = pytest.mark.skipif(
    find_spec("optimum") is None or not quantized._can_compile(), reason="optimum-quanto and a C++ compiler are needed"
)


def build(technique: str, model: PreTrainedModel, kv_budget: int = WINDOW, headroom: int = 40, **changed: Any) -> Any:
    budget = kv_budget if techniques.evicts(technique) else None
    partial = instantiate(techniques.config(technique).strategy.cache)
    return partial(model=model, kv_budget=budget, headroom=headroom, **changed)


def stream(model: PreTrainedModel, cache: Any, ids: Tensor, n_prompt: int) -> Tensor:
    """Logits [B, T, V]: a prompt at once, the rest token by token, as the pipeline feeds them."""
    with Decoder(model, cache) as decoder:
        first = decoder.feed(ids[:, :n_prompt], all_logits=True)
        return torch.cat([first, decoder.teacher_force(ids[:, n_prompt:])], dim=1)


def windowed(model: PreTrainedModel, ids: Tensor, n_prompt: int, kept: reference.Kept | None = None) -> Tensor:
    fed = [n_prompt, *[1] * (ids.shape[1] - n_prompt)]

    def newest(row: reference.Row) -> reference.Kept:
        return kept or reference.kept_sets(row, fed, WINDOW, lambda held, newest: min(held))

    with torch.inference_mode():
        return reference.logits(model, ids, newest, in_cache=False)


@pytest.mark.parametrize("model_name", FULL_ATTENTION)
@pytest.mark.parametrize("technique", RUNNING)
def test_where_nothing_is_dropped_the_stock_logits_come_out(technique: str, model_name: str) -> None:
    model, ids = family(model_name), prompt(2, 50)
    before = model.config._attn_implementation
    got = stream(model, build(technique, model, kv_budget=60), ids, n_prompt=30)
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("model_name", FULL_ATTENTION)
@pytest.mark.parametrize("n_prompt", [5, 30])
def test_sliding_layers_see_what_a_window_of_the_budget_holds(model_name: str, n_prompt: int) -> None:
    model, ids = family(model_name), prompt(2, 50)
    got = stream(model, build("hf_sliding", model), ids, n_prompt)
    torch.testing.assert_close(got, windowed(model, ids, n_prompt), rtol=0, atol=1e-9)


@pytest.mark.parametrize("technique", RUNNING)
def test_generate_gives_the_tokens_of_the_plain_loop(technique: str) -> None:
    model, ids = family("qwen3"), prompt(2, 30)
    cache, by_hand = (build(technique, model) for _ in range(2))
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False,
                             attention_mask=torch.ones_like(ids))  # fmt: skip
    assert cache.get_seq_length() == 41  # the last token is never fed
    expected = [ids]
    with Decoder(model, by_hand) as decoder:
        for _ in range(12):
            expected.append(decoder.feed(expected[-1]).argmax(-1, keepdim=True))
    assert torch.equal(got, torch.cat(expected, dim=1))


@pytest.mark.parametrize("technique", RUNNING)
def test_a_reset_cache_takes_a_longer_prompt_and_a_batch_equals_its_rows(technique: str) -> None:
    model, ids = family("llama"), prompt(4, 50)
    cache = build(technique, model)
    stream(model, cache, ids[:1, :20], n_prompt=10)
    cache.reset()
    assert cache.get_seq_length() == cache.bytes_logical == 0
    together = stream(model, cache, ids, n_prompt=40)
    alone = [stream(model, build(technique, model), row[None], n_prompt=40) for row in ids]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("technique", "n_kept", "n_allocated"),
    [("hf_dynamic", 34, 34), ("hf_static", 34, 30 + 40), ("hf_sliding", WINDOW - 1, WINDOW)],
)
def test_bytes_are_those_of_the_storages(technique: str, n_kept: int, n_allocated: int) -> None:
    model = family("llama")
    cache = build(technique, model)
    assert cache.bytes_held <= 3 * 8 and cache.bytes_logical == 0  # a length or a window, before any token
    stream(model, cache, prompt(3, 34), n_prompt=30)
    token_bytes = 3 * 2 * 3 * 2 * 8 * 8  # layers, key and value, rows, KV heads, head_dim, float64
    assert cache.bytes_logical == n_kept * token_bytes
    assert 0 <= cache.bytes_held - n_allocated * token_bytes <= 3 * 8
    assert cache.bytes_held >= sum(layer.keys.untyped_storage().nbytes() * 2 for layer in cache.layers)


@needs_quanto
def test_quantised_tokens_stay_near_the_wide_ones_in_a_fraction_of_the_bytes() -> None:
    model, ids = family("llama"), prompt(2, 60)
    numbers = {"q_group_size": 16, "residual_length": 8}
    wide = build("hf_dynamic", model)
    expected = stream(model, wide, ids, n_prompt=40)[:, 40:].flatten()
    nearness, held = {}, {}
    for nbits in (2, 4):
        cache = build("hf_quantized", model, nbits=nbits, **numbers)
        assert cache.bytes_held == 0
        got = stream(model, cache, ids, n_prompt=40)[:, 40:].flatten()
        nearness[nbits] = torch.corrcoef(torch.stack([expected, got]))[0, 1].item()
        held[nbits] = cache.bytes_held
        assert cache.get_seq_length() == 60
    assert nearness[4] > 0.9 > nearness[2]
    packed = 3 * 2 * 2 * 2 * 8 * 8  # bytes per bit: layers, key and value, rows, KV heads, channels, 64 tokens / 8
    assert 0 < held[4] - held[2] <= 2 * packed
    assert held[4] < wide.bytes_held / 2


@needs_quanto
def test_copies_of_a_quantised_cache_go_their_own_ways() -> None:
    model, ids = family("llama"), prompt(2, 40)
    cache, alone = (build("hf_quantized", model, q_group_size=16, residual_length=4) for _ in range(2))
    stream(model, cache, ids[:, :30], n_prompt=20)
    twin = copy.deepcopy(cache)
    expected = stream(model, alone, ids, n_prompt=20)[:, 30:]
    for each in (cache, twin):
        with Decoder(model, each) as decoder:
            torch.testing.assert_close(decoder.teacher_force(ids[:, 30:]), expected, rtol=0, atol=1e-9)


@needs_quanto
def test_a_quantised_cache_is_reset_and_generates() -> None:
    model, ids = family("llama"), prompt(2, 20)
    cache = build("hf_quantized", model, q_group_size=16)
    first, second = [], []
    for found in (first, second):
        cache.reset()
        found.append(model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False,
                                    attention_mask=torch.ones_like(ids)))  # fmt: skip
    assert torch.equal(first[0], second[0])


class KeepFirst:
    """A press after the contract of kvpress: hooks shrink what the attention has just stored of a prompt."""

    compression_ratio = 0.0

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        hooks = [layer.self_attn.register_forward_hook(self.shrink, with_kwargs=True) for layer in model.model.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def shrink(self, module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer, n_new = kwargs["past_key_values"].layers[module.layer_idx], kwargs["hidden_states"].shape[1]
        if n_new > 1:
            n_kept = int(n_new * (1 - self.compression_ratio))
            layer.keys, layer.values = layer.keys[:, :, :n_kept].clone(), layer.values[:, :, :n_kept].clone()


@pytest.mark.parametrize("n_prompt", [29, 30, 31, 37])
def test_a_pressed_prompt_keeps_the_budget_and_what_follows_keeps_its_position(n_prompt: int) -> None:
    model, ids = family("llama"), prompt(2, 45)
    cache = PressedCache(KeepFirst(), WINDOW, model)
    kept = [list(range(t + 1)) if t < n_prompt else [*range(WINDOW), *range(n_prompt, t + 1)] for t in range(45)]
    expected = windowed(model, ids, n_prompt, kept)
    for _ in range(2):
        got = stream(model, cache, ids, n_prompt)
        assert {layer.keys.shape[2] for layer in cache.layers} == {WINDOW + 45 - n_prompt}
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
        cache.reset()
    assert not any(layer.self_attn._forward_hooks for layer in model.model.layers)


def test_several_tokens_after_a_pressed_prompt_are_refused() -> None:
    model, ids = family("llama"), prompt(1, 30)
    with Decoder(model, PressedCache(KeepFirst(), WINDOW, model)) as decoder:
        decoder.feed(ids[:, :20])
        with pytest.raises(ValueError, match="one at a time"):
            decoder.feed(ids[:, 20:])


def test_a_static_cache_that_is_full_says_how_much_room_it_was_given() -> None:
    model = family("llama")
    cache = build("hf_static", model, headroom=3)
    with pytest.raises(ValueError, match="headroom=3: no room for token 24 in 23"):
        stream(model, cache, prompt(1, 30), n_prompt=20)


@pytest.mark.parametrize(
    ("technique", "model_name", "changed", "named"),
    [
        ("hf_sliding", "mistral", {}, "MistralForCausalLM: .* DynamicSlidingWindowLayer"),
        ("hf_static", "mistral", {}, "MistralForCausalLM: .* DynamicSlidingWindowLayer"),
        ("hf_sliding", "llama", {"kv_budget": 1}, "kv_budget=1: .*valid: 2 or more"),
        ("hf_quantized", "llama", {"backend": "gguf"}, "backend=gguf: unknown; valid: quanto, hqq"),
        ("hf_quantized", "mistral", {}, "MistralForCausalLM: .* DynamicSlidingWindowLayer"),
        pytest.param("hf_quantized", "llama", {"nbits": 3}, r"strategy.cache.nbits=3: .*`2`, `4`", marks=needs_quanto),
    ],
)
def test_what_a_foreign_cache_cannot_do_is_refused_by_name(
    technique: str, model_name: str, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        build(technique, family(model_name), **changed)


@pytest.mark.skipif(find_spec("hqq") is not None, reason="the package is there")
def test_a_missing_package_is_named_with_what_to_install() -> None:
    with pytest.raises(ImportError, match="backend=hqq: the package hqq is not installed; valid: pip install hqq"):
        build("hf_quantized", family("llama"), backend="hqq")


def test_kvpress_says_that_it_does_not_go_with_this_transformers() -> None:
    with pytest.raises(ImportError, match=r"needs transformers<5\.3, this is 5"):
        build("kvpress", family("llama"))


def test_offloading_without_a_cuda_device_says_what_it_needs() -> None:
    with pytest.raises(NotImplementedError, match="valid: device=cuda"):
        build("hf_offloaded", family("llama"))


@pytest.mark.parametrize(("age_s", "is_kept"), [(0, True), (2 * quantized.LONGEST_BUILD_S, False)])
def test_nobody_waits_for_a_build_that_was_killed(tmp_path, age_s, is_kept):
    lock = tmp_path / "lock"
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    quantized._unlock(tmp_path)
    assert lock.exists() is is_kept
