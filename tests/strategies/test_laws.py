"""The laws that every technique obeys, whatever it keeps and however it holds it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from pipeline.memory.measured import peak_growths
from strategies.cache import SlotCache
from strategies.ragged import NOBODY
from tests.strategies import reference, techniques
from tests.strategies.models import WINDOW, family, prompt
from tests.strategies.techniques import BUDGET


@torch.inference_mode()
def feed(model: PreTrainedModel, cache: SlotCache, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of `ids` [B, T], appended to what the cache has seen; who asks expects a prompt backwards."""
    if not cache.get_seq_length():
        cache.foresee(model, torch.cat([ids, ids.flip(1)], dim=1), ids.shape[1])
    position = torch.arange(ids.shape[1])[None] + cache.get_seq_length()
    with cache.attached(model):
        return model(ids, position_ids=position, past_key_values=cache, slot_cache=cache).logits


def stream(model: PreTrainedModel, cache: SlotCache, ids: Tensor, n_prompt: int) -> Tensor:
    """A prompt at once, the rest token by token."""
    steps = [feed(model, cache, ids[:, :n_prompt])]
    return torch.cat(steps + [feed(model, cache, ids[:, t : t + 1]) for t in range(n_prompt, ids.shape[1])], dim=1)


def bound(technique: str, model_name: str, n_prompt: int, n_seen: int) -> int:
    """Tokens that a layer may hold, mean over layers: what is decided once grows by what follows the prompt."""
    if model_name == "mistral":
        return min(WINDOW, n_seen)
    if technique in techniques.ONCE:
        return min(BUDGET, n_prompt) + n_seen - n_prompt
    return min(BUDGET, n_seen) if technique in techniques.EVICTING else n_seen


def mean_held(cache: SlotCache) -> float:
    """Tokens per head and row, mean over layers; heads may hold different numbers of them."""
    held = [layer.positions[..., : layer.n_held] != NOBODY for layer in cache.layers]
    return sum(each.sum(-1).double().mean().item() for each in held) / len(held)


def in_bounds(technique: str, model_name: str, n_held: float, n_prompt: int, n_seen: int) -> bool:
    """As many as may be held; where eviction waits for some steps, fewer than those more."""
    least = bound(technique, model_name, n_prompt, n_seen)
    slack = 0 if model_name == "mistral" else techniques.n_waiting(technique)
    return least <= n_held <= min(least + slack, n_seen)


@pytest.mark.parametrize(("technique", "model_name"), techniques.on_families(techniques.EXACT))
def test_a_budget_above_the_length_changes_nothing(technique: str, model_name: str) -> None:
    model, ids = family(model_name), prompt(2, 60)
    cache = techniques.build(technique, model, kv_budget=100)
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    got = stream(model, cache, ids, n_prompt=40)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(("technique", "model_name"), techniques.on_families(techniques.EXACT))
def test_generate_gives_the_stock_tokens_below_the_budget(technique: str, model_name: str) -> None:
    model, ids = family(model_name), prompt(2, 20)
    how: dict[str, Any] = {"max_new_tokens": 15, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cache = techniques.build(technique, model, kv_budget=100)
    cache.foresee(model, torch.cat([ids, ids], dim=1), 20)
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, **how)
    assert torch.equal(got, model.generate(ids, **how))
    assert cache.get_seq_length() == 34  # the last token is never fed


# A prompt below the budget and one above it everywhere; how it begins from one token has nothing to do with the family.
@pytest.mark.parametrize(
    ("technique", "model_name", "n_prompt"),
    [
        (technique, model_name, n_prompt)
        for technique, model_name in techniques.on_families(techniques.EVICTING)
        for n_prompt in ((1, 10, 40) if model_name == "llama" else (10, 40))
    ],
)
def test_the_budget_is_never_exceeded(technique: str, model_name: str, n_prompt: int) -> None:
    model, ids = family(model_name), prompt(2, 60)
    cache = techniques.build(technique, model, kv_budget=BUDGET)
    feed(model, cache, ids[:, :n_prompt])
    for t in range(n_prompt, 60):
        feed(model, cache, ids[:, t : t + 1])
        assert in_bounds(technique, model_name, mean_held(cache), n_prompt, t + 1)
    assert cache.get_seq_length() == 60


@pytest.mark.parametrize("technique", techniques.CACHED)
def test_reported_bytes_are_the_bytes_held(technique: str) -> None:
    model, batch, n_tokens, headroom = family("llama"), 3, 50, 8
    cache = techniques.build(technique, model, BUDGET, headroom)
    assert cache.bytes_held == cache.bytes_offloaded == cache.bytes_logical == 0
    stream(model, cache, prompt(batch, n_tokens), n_prompt=40)
    # The allocator itself says what a copy of everything takes; the model's rotary frequencies are not the cache's.
    of_the_model = {id(layer.rotation): layer.rotation for layer in cache.layers}
    (taken,) = peak_growths((copy.deepcopy(cache, of_the_model) for _ in range(1)), "cpu")
    assert 0 <= taken - cache.bytes_held - cache.bytes_offloaded < 64  # torch counts the files that it maps
    token_bytes = 3 * 2 * batch * 2 * 8 * 8  # layers, key and value, rows, KV heads, head_dim, float64
    full_bytes = round(mean_held(cache) * token_bytes)
    assert 0 < cache.bytes_logical <= full_bytes
    if technique in techniques.EXACT:
        assert cache.bytes_logical == full_bytes
    books = [
        [layer.positions, layer.scores, layer.n_seen, layer.memory, *(layer.sinks or [])] for layer in cache.layers
    ]
    bookkeeping = sum(tensor.nbytes for tensors in books for tensor in tensors if tensor is not None)
    assert cache.bytes_held + cache.bytes_offloaded - bookkeeping <= cache.bytes_logical + headroom * token_bytes
    assert cache.bytes_held + cache.bytes_offloaded >= cache.bytes_logical


@pytest.mark.parametrize("technique", techniques.CACHED)
def test_memory_for_a_prompt_grows_with_its_length_and_not_with_its_square(technique: str) -> None:
    def peak(n_tokens: int) -> int:
        model, ids = family("llama"), prompt(1, n_tokens)
        cache = techniques.build(technique, model, n_tokens // 4)
        (taken,) = peak_growths((feed(model, cache, ids) for _ in range(1)), "cpu")
        return taken

    assert peak(2048) < 2.4 * peak(1024)


def addresses(storage: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in tree_leaves(vars(storage)) if isinstance(tensor, Tensor)]


@pytest.mark.parametrize("technique", techniques.STEADY)
def test_memory_stays_where_it_is_while_decoding_at_the_budget(technique: str) -> None:
    model, ids = family("llama"), prompt(1, 60)
    cache = techniques.build(technique, model, BUDGET)
    stream(model, cache, ids[:, :40], n_prompt=30)
    held = addresses(cache.layers[0].storage)
    stream(model, cache, ids[:, 40:], n_prompt=1)
    assert held and addresses(cache.layers[0].storage) == held


FED = {"prompt": [30, *[1] * 30], "one": [1] * 60, "chunks": [30, *[1] * 10, 8, *[1] * 4, 8]}


# Chunks hold every kind of piece: a prompt, single tokens, several at once. What is fed decides when to evict, a family
# only what is scored, so that the others are asked of one family alone.
@pytest.mark.parametrize(
    ("model_name", "pieces"),
    [("llama", "prompt"), ("llama", "one"), *((m, "chunks") for m in ("llama", "qwen3", "gpt2"))],
)
@pytest.mark.parametrize("technique", [name for name in techniques.EXACT if name not in techniques.FORESEEING])
def test_the_brute_force_reference_agrees(technique: str, model_name: str, pieces: str) -> None:
    fed = FED[pieces]
    model, ids = family(model_name), prompt(2, sum(fed))
    cache = techniques.build(technique, model, BUDGET)
    rule = techniques.rule(technique)

    def kept(row: reference.Row) -> reference.Kept:
        budget = rule.budget(row, BUDGET, fed[0]) if hasattr(rule, "budget") else BUDGET
        how = {"once": technique in techniques.ONCE, "n_steps": techniques.n_waiting(technique) + 1}
        return reference.kept_sets(row, fed, budget, rule.loser(row), mean=BUDGET, **how)

    with torch.inference_mode():
        in_cache = rule.IN_CACHE_POSITIONS and model_name != "gpt2"  # learned positions cannot be moved
        expected = reference.logits(model, ids, kept, in_cache=in_cache)
    got = torch.cat([feed(model, cache, piece) for piece in ids.split(fed, dim=1)], dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.99


@pytest.mark.parametrize("technique", [name for name in techniques.STEADY if name in techniques.EXACT])
def test_waiting_some_steps_evicts_what_the_rule_says_all_at_once(technique: str) -> None:
    model, fed = family("llama"), [30, *[1] * 20, 9, *[1] * 5]
    ids = prompt(2, sum(fed))
    cache = techniques.build(
        technique, model, BUDGET, 8, "strategy/schedule=every_n_steps", "strategy.schedule.n_steps=6"
    )
    rule = techniques.rule(technique)

    def kept(row: reference.Row) -> reference.Kept:
        return reference.kept_sets(row, fed, BUDGET, rule.loser(row), n_steps=6)

    with torch.inference_mode():
        expected = reference.logits(model, ids, kept, in_cache=rule.IN_CACHE_POSITIONS)
    got = torch.cat([feed(model, cache, piece) for piece in ids.split(fed, dim=1)], dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("technique", techniques.CACHED)
def test_a_batch_of_four_equals_four_batches_of_one(technique: str) -> None:
    model, ids = family("llama"), prompt(4, 50)
    together = stream(model, techniques.build(technique, model, BUDGET), ids, n_prompt=30)
    alone = [stream(model, techniques.build(technique, model, BUDGET), row[None], n_prompt=30) for row in ids]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize("technique", techniques.CACHED)
def test_the_same_run_twice_is_bit_identical_and_reset_forgets_everything(technique: str) -> None:
    model, ids = family("llama"), prompt(2, 50)
    cache = techniques.build(technique, model, BUDGET)
    first = stream(model, cache, ids, n_prompt=30)
    cache.reset()
    assert cache.bytes_held == 0
    assert cache.get_seq_length() == 0
    stream(model, cache, prompt(2, 50, seed=1), n_prompt=30)
    cache.reset()
    assert torch.equal(stream(model, cache, ids, n_prompt=30), first)


@pytest.mark.parametrize(("technique", "model_name"), techniques.on_families(techniques.CACHED))
def test_several_tokens_appended_after_an_answer_are_causal_and_then_evicted(technique: str, model_name: str) -> None:
    model, ids = family(model_name), prompt(2, 60)
    cache = techniques.build(technique, model, BUDGET)
    stream(model, cache, ids[:, :40], n_prompt=30)
    chunk = feed(model, copy.deepcopy(cache), ids[:, 40:48])
    longer = feed(model, cache, ids[:, 40:50])
    torch.testing.assert_close(longer[:, :8], chunk, rtol=0, atol=1e-9)  # a later token changes no earlier one
    assert in_bounds(technique, model_name, mean_held(cache), 30, 50)
    assert torch.isfinite(feed(model, cache, ids[:, 50:51])).all()


@pytest.mark.parametrize("technique", ["sliding_window", "full"])
def test_an_appended_chunk_that_needs_no_eviction_equals_single_steps(technique: str) -> None:
    model, ids = family("llama"), prompt(2, 22)
    by_chunk = techniques.build(technique, model, BUDGET)
    by_step = techniques.build(technique, model, BUDGET)
    feed(model, by_chunk, ids[:, :10])
    got = feed(model, by_chunk, ids[:, 10:])
    torch.testing.assert_close(got, stream(model, by_step, ids, n_prompt=10)[:, 10:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("technique", techniques.CACHED)
def test_generate_evicts_as_the_plain_loop_does(technique: str) -> None:
    model, ids = family("qwen3"), prompt(2, 40)
    cache, by_hand = (techniques.build(technique, model, BUDGET) for _ in range(2))
    cache.foresee(model, torch.cat([ids, ids.flip(1)], dim=1), 40)
    with cache.attached(model):
        got = model.generate(ids, max_new_tokens=12, do_sample=False, past_key_values=cache,
                             attention_mask=torch.ones_like(ids))  # fmt: skip
    token, expected = ids, []
    for _ in range(12):
        token = feed(model, by_hand, token)[:, -1:].argmax(-1)
        expected.append(token)
    assert torch.equal(got[:, 40:], torch.cat(expected, dim=1))


@pytest.mark.parametrize("technique", techniques.CACHED)
def test_reordering_beams_moves_everything_that_belongs_to_a_row(technique: str) -> None:
    model, ids, order = family("llama"), prompt(3, 50), torch.tensor([2, 2, 0])
    cache = techniques.build(technique, model, BUDGET)
    stream(model, cache, ids[:, :40], n_prompt=30)
    cache.reorder_cache(order)
    moved = techniques.build(technique, model, BUDGET)
    stream(model, moved, ids[order, :40], n_prompt=30)
    torch.testing.assert_close(feed(model, cache, ids[order, 40:41]), feed(model, moved, ids[order, 40:41]))


def test_beam_search_gives_the_stock_beams() -> None:
    model, ids = family("llama"), prompt(2, 20)
    how: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "num_beams": 3}
    how["attention_mask"] = torch.ones_like(ids)
    cache = techniques.build("full", model)
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, **how)
    assert torch.equal(got, model.generate(ids, **how))


@pytest.mark.parametrize("technique", techniques.STEADY)
def test_one_compiled_step_serves_many_caches(technique: str) -> None:
    model, ids = family("llama"), prompt(2, 50)
    caches = [techniques.build(technique, model, BUDGET) for _ in range(3)]
    for cache in caches:
        stream(model, cache, ids[:, :40], n_prompt=30)
    torch._dynamo.reset()
    graphs = CompileCounter()

    @torch.compile(backend=graphs, fullgraph=True)
    def step(token: Tensor, position: Tensor, cache: SlotCache) -> Tensor:
        return model(token, position_ids=position, past_key_values=cache, slot_cache=cache).logits

    for cache in caches:
        eager = copy.deepcopy(cache)
        for t in range(40, 44):
            expected = feed(model, eager, ids[:, t : t + 1])
            with torch.inference_mode(), cache.attached(model):
                got = step(ids[:, t : t + 1], torch.full((1, 1), t), cache)
            torch.testing.assert_close(got, expected)
    assert graphs.frame_count == 1


def test_cropping_is_refused_with_its_reason() -> None:
    cache = techniques.build("full", family("llama"))
    with pytest.raises(ValueError, match="evicted token"):
        cache.crop(-1)
