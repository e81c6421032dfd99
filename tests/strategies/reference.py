"""The brute-force reference: one plain forward pass in which every query sees exactly what its cache would hold.

It shares nothing with the slot cache: kept sets come from a loop over tokens, and positions inside the cache from
turning every single key and query back and forth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

Kept = list[list[int]]  # for each query position, the positions that it sees, itself included
Loser = Callable[[list[int], int], int]  # (held positions, newest position) → the one to evict


@dataclass(frozen=True)
class Row:
    """What one sequence feeds to one layer: every token, also those that are evicted later; `head` is a KV head."""

    layer: int
    head: int
    queries: Tensor  # [Hq, T, D]
    keys: Tensor  # [H, T, D]
    values: Tensor  # [H, T, D]
    scaling: float
    seen: Kept = field(default_factory=list)  # what each query saw, as far as it has come

    @property
    def query(self) -> Tensor:
        """[G, T, D], of the query heads that share the KV head."""
        return self.queries.chunk(len(self.keys))[self.head]

    @property
    def key(self) -> Tensor:
        return self.keys[self.head]

    @property
    def value(self) -> Tensor:
        return self.values[self.head]

    def received(self, first: int = 0) -> Tensor:
        """Attention [T] that each token got so far from the queries `first` and later, summed over the query heads."""
        total = self.key.new_zeros(len(self.key))
        for position, seen in enumerate(self.seen[first:], first):
            total[seen] += (self.query[:, position] @ self.key[seen].T * self.scaling).softmax(-1).sum(0)
        return total


def kept_sets(
    row: Row,
    fed: list[int],
    budget: int,
    loser: Loser | None,
    *,
    mean: int | None = None,
    once: bool = False,
    n_steps: int = 1,
) -> Kept:
    """`fed` is a prompt and what is appended to it, piece by piece, as numbers of tokens.

    A piece of several tokens attends to all that is held and to itself, and is evicted down after; for a single token
    room is made first. `once`: only the prompt is evicted from. `n_steps`: not before so many are too many. `mean`: the
    budget of all layers, above which this one's own counts; the same where it is not given.
    """
    held: list[int] = []
    limit = mean or budget

    def too_many(n_tokens: int, slack: int) -> bool:
        nonlocal limit
        if n_tokens > limit + slack:
            limit = budget
        return n_tokens > limit + slack

    for piece, n_new in enumerate(fed):
        evicting = loser if piece == 0 or not once else None
        if n_new == 1 and held and evicting and too_many(len(held) + 1, n_steps - 1):
            while len(held) >= budget:
                held.remove(evicting(held, len(row.seen)))
        for _ in range(n_new):
            held.append(len(row.seen))
            row.seen.append(held.copy())
        if evicting and too_many(len(held), n_steps - 1 if piece else 0):
            while len(held) > budget:
                held.remove(evicting(held, len(row.seen) - 1))
    return row.seen


def logits(model: PreTrainedModel, ids: Tensor, kept: Callable[[Row], Kept], *, in_cache: bool) -> Tensor:
    """Logits [B, T, V] of `ids` [B, T]; `kept` says what every query of a row sees."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        output = torch.empty_like(query)
        written = output.unflatten(1, (key.shape[1], -1))
        for b in range(len(ids)):
            for head in range(key.shape[1]):
                row = Row(module.layer_idx, head, query[b], key[b], value[b], scaling)
                written[b, head] = _attend(model, row, kept(row), in_cache=in_cache)
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
