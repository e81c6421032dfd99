"""Attention under a static pattern, of a whole sequence on itself or of its last tokens.

Shapes: B batch, Hq query heads, H KV heads, T queries, N keys, D head_dim; G groups of c queries and k keys.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding

from strategies.attention import causal_attention, grouped_attention
from strategies.model.patterns import Part, Pattern

BLOCKWISE = 1024  # tokens from which blocks are faster than one masked square, training included


def sparse_attention(pattern: Pattern, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
    """query [B, Hq, T, D], the last ones of N tokens, on key and value [B, H, N, D] → [B, Hq, T, D]"""
    n_queries, n_keys = query.shape[2], key.shape[2]
    if n_queries == n_keys >= BLOCKWISE:
        return _blockwise(layout(pattern, n_keys, query.device), query, key, value, scaling)
    mask = rectangle(pattern, n_queries, n_keys, query.device)
    if mask is None:
        return causal_attention(query, key, value, scaling=scaling)
    return grouped_attention(query, key, value, mask[None, None], scaling=scaling)


@lru_cache(maxsize=32)
def rectangle(pattern: Pattern, n_queries: int, n_keys: int, device: torch.device) -> Tensor | None:
    """The mask [T, N] of the last `n_queries` of `n_keys` tokens; None for a sequence that is plainly causal."""
    position = torch.arange(n_keys)
    mask = pattern.visible(position[-n_queries:, None], position)
    return None if n_queries == n_keys and mask.equal(mask.new_ones(mask.shape).tril()) else mask.to(device)


@lru_cache(maxsize=32)
def layout(pattern: Pattern, n_tokens: int, device: torch.device) -> list[tuple[Part, Tensor]]:
    """The parts of a sequence, each with the place of every token [n_tokens] among its queries [G · c]."""
    found = []
    for part in pattern.parts(n_tokens):
        token = part.queries.flatten()
        there = (token < n_tokens).nonzero()[:, 0]
        place = torch.empty(n_tokens, dtype=torch.long)
        place[token[there]] = there
        clamped = part._replace(queries=part.queries.clamp(max=n_tokens - 1))
        found.append((Part(*(tensor.to(device) for tensor in clamped)), place.to(device)))
    return found


def _blockwise(parts: list[tuple[Part, Tensor]], query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    query_rows, key_rows, value_rows = (tokens.permute(2, 0, 1, 3) for tokens in (query, key, value))
    outputs, weights = [], []
    for (queries, keys, mask), place in parts:
        grouped = _gather(queries, query_rows), _gather(keys, key_rows), _gather(keys, value_rows)
        if len(parts) == 1:
            output = grouped_attention(*grouped, mask[:, None], scaling=scaling)
        else:
            output, log_weight = _weighed(*grouped, mask[:, None, None], scaling)
            weights.append(log_weight.transpose(1, 2).flatten(0, 1)[place])
        in_order = embedding(place, output.transpose(1, 2).flatten(0, 1).flatten(1))
        outputs.append(in_order.view(query_rows.shape))
    if len(parts) == 1:
        return outputs[0].permute(1, 2, 0, 3)
    share = torch.stack(weights).softmax(0).view(-1, *query_rows.shape[:3], 1)
    return (torch.stack(outputs) * share).sum(0).permute(1, 2, 0, 3)


def _gather(index: Tensor, rows: Tensor) -> Tensor:
    """index [G, n] of rows [T, B, H, D] → [G, B · H, n, D]. An embedding, whose gradient is the fastest of its kind."""
    found = embedding(index, rows.reshape(len(rows), -1))
    return found.unflatten(-1, (-1, rows.shape[-1])).transpose(1, 2)


def _weighed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """The output of one part and the logarithm of its sum of exponentials, by which parts are put together."""
    rows = query.unflatten(1, (key.shape[1], -1))
    score = rows @ key[:, :, None].transpose(-1, -2) * scaling
    score = score.masked_fill(~mask, torch.finfo(score.dtype).min / 2)  # a query may see nothing of this part
    log_weight = score.logsumexp(-1, keepdim=True)
    output = (score - log_weight).exp() @ value[:, :, None]
    return output.flatten(1, 2), log_weight[..., 0].flatten(1, 2)
