"""The brute-force reference: one plain forward pass in which every query sees exactly what its cache would hold.

It shares nothing with the slot cache: kept sets come from a loop over tokens, and positions inside the cache from
turning every single key and query back and forth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

Kept = list[list[int]]  # for each query position, the positions that it sees, itself included
Loser = Callable[[list[int], int], int]  # (held positions, newest position) → the one to evict


@dataclass(frozen=True)
class Row:
    """What one sequence feeds to one KV head of one layer: every token, also those that are evicted later."""

    layer: int
    head: int  # among the KV heads
    query: Tensor  # [G, T, D], of the query heads that share it
    key: Tensor  # [T, D]
    value: Tensor  # [T, D]
    scaling: float


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


def logits(model: PreTrainedModel, ids: Tensor, kept: Callable[[Row], Kept], *, in_cache: bool) -> Tensor:
    """Logits [B, T, V] of `ids` [B, T]; `kept` says what every query of a row sees."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        output = torch.empty_like(query)
        groups = query.chunk(key.shape[1], dim=1)  # views: what is written into one lands in `output`
        for head, (queries, written) in enumerate(zip(groups, output.chunk(key.shape[1], dim=1), strict=True)):
            for b in range(len(ids)):
                row = Row(module.layer_idx, head, queries[b], key[b, head], value[b, head], scaling)
                written[b] = _attend(model, row, kept(row), in_cache=in_cache)
        return output.transpose(1, 2), None

    AttentionInterface.register("brute_force", attention)
    AttentionMaskInterface.register("brute_force", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("brute_force")
    try:
        return model(ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)


def _attend(model: Any, row: Row, kept: Kept, *, in_cache: bool) -> Tensor:
    """Every query on exactly what it sees, one by one → [G, T, D]."""
    output = torch.empty_like(row.query)
    for position, seen in enumerate(kept):
        q, k = row.query[:, position], row.key[seen]
        if in_cache:
            k = _turn(model, k, torch.arange(len(seen)) - torch.tensor(seen))
            q = _turn(model, q[:, None], torch.tensor([len(seen) - 1 - position]))[:, 0]
        output[:, position] = (q @ k.T * row.scaling).softmax(-1) @ row.value[seen]
    return output


def _turn(model: Any, vector: Tensor, shift: Tensor) -> Tensor:
    """Rotate [..., n, D] by `shift` [n] positions, in complex numbers, pairing dimension i with i + D/2."""
    angle = shift[:, None] * model.model.rotary_emb.inv_freq.double()
    first, second = vector.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)
