"""Attention on tokens that are not held as they are: what is needed of them are two products, and nothing is rebuilt.

Shapes: B batch, Hq query heads, H KV heads, G = Hq / H, N held tokens, D head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Foldable(Protocol):
    """What holds tokens in a form that two products can be made with; see `Storage`."""

    def products(self, rows: Tensor, n_held: int) -> Tensor: ...

    def weighted(self, weight: Tensor, n_held: int) -> Tensor: ...


def folded_attention(
    held: Foldable,
    query: Tensor,
    n_kv_heads: int,
    n_held: int,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """One query per head [B, Hq, 1, D] on all held tokens under mask [b, h, 1, N].

    Returns the output [B, Hq, 1, D], and what each token received, summed over the G query heads [B, H, N]. Computed in
    single precision at least.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    rows = query.reshape(query.shape[0], n_kv_heads, -1, query.shape[3]).to(wide)
    score = held.products(rows * scaling, n_held)
    if softcap is not None:
        score = torch.tanh(score / softcap) * softcap
    if mask is not None:
        score = score.masked_fill(~mask, float("-inf"))
    weight = score.softmax(-1)
    return held.weighted(weight, n_held).to(query.dtype).reshape(query.shape), weight.sum(2)
