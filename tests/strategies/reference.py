"""The brute-force reference: one plain forward pass in which every query sees exactly what its cache would hold.

It shares nothing with the slot cache: kept sets come from a loop over tokens, and positions inside the cache from
turning every single key and query back and forth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

Kept = list[list[int]]  # for each query position, the positions that it sees, itself included
Loser = Callable[[list[int], int], int]  # (held positions, newest position) → the one to evict


def kept_sets(n_tokens: int, n_prompt: int, budget: int, loser: Loser) -> Kept:
    """The prompt attends to itself in full; then it is evicted down, and every later token replaces a loser."""
    sets = [list(range(query + 1)) for query in range(n_prompt)]
    held = list(range(n_prompt))
    while len(held) > budget:
        held.remove(loser(held, n_prompt - 1))
    for query in range(n_prompt, n_tokens):
        if len(held) == budget:
            held.remove(loser(held, query))
        held.append(query)
        sets.append(held.copy())
    return sets


def oldest(n_sinks: int = 0) -> Loser:
    return lambda held, newest: min(token for token in held if token >= n_sinks)


def lowest(score: Callable[[int], int], window_size: int) -> Loser:
    return lambda held, newest: min((token for token in held if token <= newest - window_size), key=score)


def logits(
    model: PreTrainedModel, ids: Tensor, kept: Callable[[int, int], Kept], *, n_prompt: int, in_cache: bool
) -> Tensor:
    """Logits [B, T, V] of `ids` [B, T]; `kept(layer, KV head)` says what every query sees."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        output = torch.empty_like(query)
        for head in range(query.shape[1]):
            for position, seen in enumerate(kept(module.layer_idx, head // group)):
                q, k = query[:, head, position], key[:, head // group, seen]
                if in_cache and position >= n_prompt:
                    k = _turn(model, k, torch.arange(len(seen)) - torch.tensor(seen))
                    q = _turn(model, q[:, None], torch.tensor([len(seen) - 1 - position]))[:, 0]
                weight = (torch.einsum("bd,bnd->bn", q, k) * scaling).softmax(-1)
                output[:, head, position] = torch.einsum("bn,bnd->bd", weight, value[:, head // group, seen])
        return output.transpose(1, 2), None

    AttentionInterface.register("brute_force", attention)
    AttentionMaskInterface.register("brute_force", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("brute_force")
    try:
        return model(ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)


def _turn(model: Any, vector: Tensor, shift: Tensor) -> Tensor:
    """Rotate [B, n, D] by `shift` [n] positions, in complex numbers, pairing dimension i with i + D/2."""
    angle = shift[:, None] * model.model.rotary_emb.inv_freq.double()
    first, second = vector.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)
