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


def kept_sets(fed: list[int], budget: int, loser: Loser | None) -> Kept:
    """`fed` is a prompt and what is appended to it, piece by piece, as numbers of tokens.

    A piece of several tokens attends to all that is held and to itself, and is evicted down after; a single token
    takes the place of a loser first.
    """
    sets: Kept = []
    held: list[int] = []
    for n_new in fed:
        if n_new == 1 and held and loser and len(held) == budget:
            held.remove(loser(held, len(sets)))
        for _ in range(n_new):
            held.append(len(sets))
            sets.append(held.copy())
        while loser and len(held) > budget:
            held.remove(loser(held, len(sets) - 1))
    return sets


def logits(model: PreTrainedModel, ids: Tensor, kept: Callable[[int, int], Kept], *, in_cache: bool) -> Tensor:
    """Logits [B, T, V] of `ids` [B, T]; `kept(layer, KV head)` says what every query sees."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        output = torch.empty_like(query)
        for head in range(query.shape[1]):
            for position, seen in enumerate(kept(module.layer_idx, head // group)):
                q, k = query[:, head, position], key[:, head // group, seen]
                if in_cache:
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
