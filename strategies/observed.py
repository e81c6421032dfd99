"""Attention that is watched: what each token receives, for the scorers that go by it.

Shapes: B batch, Hq query heads, H KV heads, G = Hq / H, T new tokens, N tokens at hand, D head_dim.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from strategies.attention import visible

# Weights that are drawn up at once: what a core's own cache holds, enough to keep a GPU busy, or all where none exist.
_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26, "meta": 1 << 62}
_QUERIES = 64  # of one head, below which a product is too small to be fast


def observed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """One query per head [B, Hq, 1, D] on key, value [B, H, N, D] under mask [b, h, 1, N].

    Returns the output [B, Hq, 1, D], and what each token received, summed over the G query heads [B, H, N].
    """
    rows = query.view(query.shape[0], key.shape[1], -1, query.shape[3])
    weight = _scores(rows, key, scaling, softcap)
    if mask is not None:
        weight = weight.masked_fill(~mask, float("-inf"))
    weight = weight.softmax(-1, dtype=torch.promote_types(weight.dtype, torch.float32))
    return (weight.to(value.dtype) @ value).view(query.shape), weight.sum(2)


def attention_received(
    query: Tensor,
    key: Tensor,
    query_position: Tensor,
    key_position: Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """What each key received from all queries, summed over them and their heads → [B, H, N], in float32 at least.

    query [B, Hq, T, D] at positions [T], key [B, H, N, D] at [b, h, N]. None for those: all keys up to the last query,
    in order, where what lies after a query is never looked at. The weights of all queries do not exist at once.
    """
    batch, n_kv_heads, n_tokens, _ = key.shape
    ordered = key_position is None
    position = torch.arange(n_tokens, device=key.device)[None, None] if key_position is None else key_position
    position = position.expand(batch, n_kv_heads, -1)
    grouped = query.unflatten(1, (n_kv_heads, -1))
    n_group, n_queries = grouped.shape[2:4]
    received = torch.zeros_like(position, dtype=torch.promote_types(key.dtype, torch.float32))
    n_weights = max(weights_at_once(key.device) // (n_group * n_tokens), 1)
    n_heads = min(max(n_weights // _QUERIES, 1), n_kv_heads)
    for row, first in product(range(batch), range(0, n_kv_heads, n_heads)):
        heads = slice(first, first + n_heads)
        for start in range(0, n_queries, max(n_weights // n_heads, 1)):
            end = min(start + max(n_weights // n_heads, 1), n_queries)
            n_keys = n_tokens - n_queries + end if ordered else n_tokens
            n_hiding = end - start if ordered and sliding_window is None else n_keys  # only here a mask says anything
            at = position[row, heads, n_keys - n_hiding : n_keys]
            hidden = ~visible(query_position[start:end], at, sliding_window)[:, None]
            rows = grouped[row, heads, :, start:end].flatten(1, 2)  # so that keys are not copied for each query head
            score = _scores(rows, key[row, heads, :n_keys], scaling, softcap).unflatten(1, (n_group, -1))
            score[..., n_keys - n_hiding :].masked_fill_(hidden, float("-inf"))
            received[row, heads, :n_keys] += score.softmax(-1, dtype=received.dtype).sum((1, 2))
    return received


def weights_at_once(device: torch.device) -> int:
    return _AT_ONCE.get(device.type, _AT_ONCE["cuda"])


def _scores(rows: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    score = (rows * scaling) @ key.transpose(-1, -2)
    return score if softcap is None else torch.tanh(score / softcap) * softcap
