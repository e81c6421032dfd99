"""Merging does what the paper's rule says, loser by loser, and nothing where nothing is similar enough."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.drop import Drop
from strategies.token.merge import Merge
from strategies.token.per_token import PerTokenStorage
from tests.strategies import techniques
from tests.strategies.models import family, prompt
from tests.strategies.test_laws import feed, stream

BATCH, HEADS, TOKENS, KEPT, DIM = 2, 3, 40, 12, 8


def tokens(n_tokens: int = TOKENS, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, BATCH, HEADS, n_tokens, DIM, dtype=torch.float64, generator=random)
    return key, value


def some(n_kept: int, shape: tuple[int, int]) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.rand(*shape, TOKENS, generator=random).topk(n_kept).indices.sort().values


def best(loser: Tensor, others: Tensor) -> tuple[float, int]:
    similarity = cosine_similarity(loser[None], others, dim=-1)
    return similarity.max().item(), int(similarity.argmax())


def merged(key: Tensor, value: Tensor, kept: list[int], threshold: float | None) -> tuple[Tensor, float]:
    """The rule once more for one head, key, value [N, D] → the kept values, and the threshold."""
    losers = [token for token in range(len(key)) if token not in kept]
    found = [best(key[token], key[kept]) for token in losers]
    mean = sum(similarity for similarity, _ in found) / len(found)
    threshold = mean if threshold is None else (threshold + mean) / 2
    parts: list[list[tuple[float, Tensor]]] = [[(math.e, value[token])] for token in kept]
    for token, (similarity, nearest) in zip(losers, found, strict=True):
        if similarity >= threshold:
            parts[nearest].append((math.exp(similarity), value[token]))
    averages = [sum(w * v for w, v in part) / sum(w for w, _ in part) for part in parts]
    return torch.stack([torch.as_tensor(average) for average in averages]), threshold


@pytest.mark.parametrize("shared", [False, True], ids=["each head its own losers", "all heads the same"])
def test_many_losers_at_once_agree_with_the_rule_said_once_more(shared: bool) -> None:
    key, value = tokens()
    kept = some(KEPT, (1, 1) if shared else (BATCH, HEADS))
    memory = None
    for _ in range(2):  # the second time with a threshold that there is already
        thresholds = None if memory is None else memory[..., 0].clone()
        kept_key, kept_value, memory = Merge().keep(key, value, kept, memory)
        assert memory is not None
        for row, head in ((row, head) for row in range(BATCH) for head in range(HEADS)):
            own = kept.expand(BATCH, HEADS, -1)[row, head].tolist()
            before = None if thresholds is None else thresholds[row, head].item()
            expected, threshold = merged(key[row, head], value[row, head], own, before)
            torch.testing.assert_close(kept_value[row, head], expected, rtol=0, atol=1e-12)
            assert memory[row, head, 0].item() == pytest.approx(threshold, abs=1e-12)
            assert torch.equal(kept_key[row, head], key[row, head, own])
            hull = value[row, head].amin(0), value[row, head].amax(0)
            assert (kept_value[row, head] >= hull[0]).all() and (kept_value[row, head] <= hull[1]).all()
        key = key + 0.5 * tokens(seed=2)[0]
    assert not torch.equal(kept_value, Drop().keep(key, value, kept, None)[1])


def test_losers_one_by_one_agree_with_the_rule_said_once_more() -> None:
    key, value = tokens(KEPT)
    newcomers, storage = tokens(20, seed=3)[0], DenseStorage(Contiguous())
    storage.load(key, value, KEPT)
    thresholds: dict[tuple[int, int], float] = {}
    memory, n_merged, n_dropped = None, 0, 0
    for step in range(20):
        slot = (torch.arange(BATCH * HEADS).view(BATCH, HEADS, 1) * 5 + step) % KEPT
        expected = storage.values.clone()
        for row, head in ((row, head) for row in range(BATCH) for head in range(HEADS)):
            loser = int(slot[row, head])
            others = [other for other in range(KEPT) if other != loser]
            similarity, nearest = best(storage.keys[row, head, loser], storage.keys[row, head, others])
            threshold = (thresholds.get((row, head), similarity) + similarity) / 2
            thresholds[row, head] = threshold
            if similarity >= threshold:
                share = math.exp(similarity) / (math.exp(similarity) + math.e)
                into = expected[row, head, others[nearest]]
                into += share * (value_of(storage, row, head, loser) - into)
            n_merged, n_dropped = n_merged + (similarity >= threshold), n_dropped + (similarity < threshold)
        held_keys, newcomer = storage.keys.clone(), newcomers[:, :, step : step + 1]
        memory = Merge().replace(storage, KEPT, slot, newcomer, memory)
        assert torch.equal(storage.keys, held_keys)
        untouched = torch.ones(BATCH, HEADS, KEPT, dtype=torch.bool).scatter_(-1, slot, False)
        torch.testing.assert_close(storage.values[untouched], expected[untouched], rtol=0, atol=1e-12)
        storage.replace(slot, newcomer, newcomer)
    assert min(n_merged, n_dropped) > 20


def value_of(storage: DenseStorage, row: int, head: int, slot: int) -> Tensor:
    return storage.values[row, head, slot].clone()


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_an_unreachable_threshold_drops_everything_bit_for_bit(bits: int | None) -> None:
    key, value = tokens()
    kept, never = some(KEPT, (BATCH, HEADS)), torch.full((BATCH, HEADS, 1), 2.0, dtype=torch.float64)
    merge = Merge(smoothing=0)
    dropped, got = Drop().keep(key, value, kept, None), merge.keep(key, value, kept, never)
    assert torch.equal(got[0], dropped[0]) and torch.equal(got[1], dropped[1])
    storages: list[Any] = [
        DenseStorage(Contiguous()) if bits is None else PerTokenStorage(Contiguous(), bits=bits) for _ in range(2)
    ]
    slot, memory = kept[..., :1] % KEPT, got[2]
    for storage in storages:
        storage.load(got[0], got[1], KEPT)
    merge.replace(storages[0], KEPT, slot, key[:, :, :1], memory)
    for storage in storages:
        storage.replace(slot, key[:, :, :1], value[:, :, :1])
    assert all(torch.equal(*pair) for pair in zip(*(storage.tokens(KEPT) for storage in storages), strict=True))


def test_nothing_is_merged_where_nothing_is_evicted() -> None:
    model, ids = family("llama"), prompt(2, 40)
    merging, full = techniques.build("token_merging", model, kv_budget=100), techniques.build("full", model)
    assert torch.equal(stream(model, merging, ids, n_prompt=30), stream(model, full, ids, n_prompt=30))


@pytest.mark.parametrize("n_layers, expected", [(4, [2]), (8, [2, 3, 4, 5, 6]), (3, [])])
def test_the_first_two_layers_and_the_last_drop(n_layers: int, expected: list[int]) -> None:
    parts = [Merge().of_layer(layer_idx, n_layers) for layer_idx in range(n_layers)]
    assert [layer_idx for layer_idx, part in enumerate(parts) if isinstance(part, Merge)] == expected


def test_the_memory_measures_the_keys_that_are_held_now() -> None:
    model, ids = family("llama"), prompt(2, 80)
    cache = techniques.build("token_merging", model)
    stream(model, cache, ids[:, :40], n_prompt=10)  # appended to, full, replaced
    feed(model, cache, ids[:, 40:50])  # several at once
    stream(model, cache, ids[:, 50:], n_prompt=1)
    for layer in cache.layers:
        held, _ = layer.storage.tokens(layer.n_held)
        torch.testing.assert_close(layer.memory[..., 1:], held.norm(dim=-1))


@pytest.mark.parametrize("field, value", [("smoothing", 1.5), ("n_first", -1)])
def test_impossible_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"on_evict\.{field}={value}"):
        Merge(**{field: value})
