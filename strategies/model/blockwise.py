"""Attention under a static pattern, of a whole sequence on itself or of its last tokens.

Shapes: B batch, Hq query heads, H KV heads, T queries, N keys, D head_dim; G groups of c queries and k keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding

from strategies.attention import causal_attention, grouped_attention
from strategies.model.patterns import Part, Pattern

BLOCKWISE = 1024  # tokens from which blocks are faster than one masked square, training included
AT_ONCE = 2**18  # scores that exist at once where parts are put together: these stay in a processor's cache


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
@torch.inference_mode(False)  # what is kept may be asked for again while training
def rectangle(pattern: Pattern, n_queries: int, n_keys: int, device: torch.device) -> Tensor | None:
    """The mask [T, N] of the last `n_queries` of `n_keys` tokens; None for a sequence that is plainly causal."""
    position = torch.arange(n_keys)
    mask = pattern.visible(position[-n_queries:, None], position)
    return None if n_queries == n_keys and mask.equal(mask.new_ones(mask.shape).tril()) else mask.to(device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept may be asked for again while training
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
    rows = [tokens.permute(2, 0, 1, 3) for tokens in (query, key, value)]
    if len(parts) == 1:
        ((part, place),) = parts
        grouped_query, grouped_key, grouped_value = _gathered(part, rows)
        output = grouped_attention(grouped_query, grouped_key, grouped_value, part.mask[:, None], scaling=scaling)
        return _in_order(output, place).view_as(rows[0]).permute(1, 2, 0, 3)
    sums = [[_in_order(each, place) for each in _sums(part, rows, scaling)] for part, place in parts]
    outputs, totals, highest = (
        torch.stack(each).unflatten(2, (-1, query.shape[1])) for each in zip(*sums, strict=True)
    )
    share = (highest - highest.amax(0)).exp()
    return ((outputs * share).sum(0) / (totals * share).sum(0)).permute(1, 2, 0, 3)


def _gathered(part: Part, rows: list[Tensor]) -> Iterator[Tensor]:
    """Queries, keys and values [T, B, H, D] → [G, B · H, n, D]. By embeddings, whose gradient is the fastest."""
    for index, tokens in zip((part.queries, part.keys, part.keys), rows, strict=True):
        found = embedding(index, tokens.reshape(len(tokens), -1))
        yield found.unflatten(-1, (-1, tokens.shape[-1])).transpose(1, 2)


def _in_order(grouped: Tensor, place: Tensor) -> Tensor:
    """[G, B · Hq, c, n] → [T, B · Hq, n], without the padding."""
    tokens = grouped.transpose(1, 2).flatten(0, 1)
    return embedding(place, tokens.flatten(1)).view(len(place), *tokens.shape[1:])


def _sums(part: Part, rows: list[Tensor], scaling: float) -> list[Tensor]:
    """Values weighed by exponentials [G, B · Hq, c, D], their sum, and the score that they are relative to,
    [G, B · Hq, c, 1] each; by these, parts are put together.
    """
    query, key, value = _gathered(part, rows)
    n_groups = max(AT_ONCE // (query.shape[1] * part.mask[0].numel()), 1)
    slices = zip(*(each.split(n_groups) for each in (query, key, value, part.mask)), strict=True)
    sums = [_weighed(few, keys, values, mask, scaling) for few, keys, values, mask in slices]
    return [torch.cat(each) for each in zip(*sums, strict=True)]


def _weighed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    mask = mask[:, None, None]
    score = query.unflatten(1, (key.shape[1], -1)) @ key[:, :, None].transpose(-1, -2) * scaling
    least = torch.finfo(score.dtype).min / 2  # where a query sees nothing of this part
    highest = score.detach().masked_fill(~mask, least).amax(-1, keepdim=True)
    # Nothing is lost below e^-80, and processors are several times slower where exponentials vanish.
    weight = (score - highest).clamp(-80, 0).exp() * mask
    output, total = weight @ value[:, :, None], weight.sum(-1, keepdim=True)
    return output.flatten(1, 2), total.flatten(1, 2), highest.flatten(1, 2)
