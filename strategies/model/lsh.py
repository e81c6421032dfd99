"""Attention within buckets of locality-sensitive hashes: Reformer (arXiv 2001.04451).

Queries and keys are one projection; a token attends to the earlier ones that fall into its bucket in at least one of
several rounds, and to itself only where there is no other. Keys have unit length. Where we differ:

- buckets are whole: the paper sorts by bucket and cuts chunks, which lose the rest of a large bucket. So visibility is
  exact and the same with and without a cache, but it is a mask: **this attention takes no less time than full
  attention, and hashing on top**. No token can be dropped either, since a later one may fall into its bucket.
- the number of buckets is fixed; the paper's grows with the length.
- what is hashed has no position in it: rotary positions are applied afterwards, so that equal contents meet.
- rotations are drawn once, with the weights, and not at every pass; they are not trained.

Shapes: B batch, H heads, T queries, N keys, D head_dim, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention
from transformers import Cache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from strategies.model.patterns import require
from strategies.model.sparse_cache import OwnLayer

CHUNK = 256  # queries whose masks exist at once


@dataclass(frozen=True)
class Hashing:
    n_hashes: int
    n_buckets: int

    def __post_init__(self) -> None:
        require(1, n_hashes=self.n_hashes)
        if self.n_buckets not in range(2, 257, 2):
            raise ValueError(f"pattern.n_buckets={self.n_buckets}: a rotation and its opposite make two buckets, and a "
                             "byte holds a bucket; valid: an even number of 2..256")  # fmt: skip


class LSHAttention(LlamaAttention):
    """`rotations` [H, D, R · n_buckets / 2] are a parameter, so that they are drawn and saved like one."""

    def __init__(self, config: LlamaConfig, layer_idx: int, hashing: Hashing) -> None:
        if config.num_key_value_heads != config.num_attention_heads:
            raise ValueError(f"num_key_value_heads={config.num_key_value_heads}: queries are the keys, so there are as "
                             f"many; valid: {config.num_attention_heads}")  # fmt: skip
        super().__init__(config, layer_idx)
        del self.k_proj
        self.hashing = hashing
        n_rotations = hashing.n_hashes * hashing.n_buckets // 2
        shape = (config.num_attention_heads, self.head_dim, n_rotations)
        self.rotations = nn.Parameter(torch.randn(shape), requires_grad=False)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B, T, hidden] → the same. Raises ValueError for a cache that holds no buckets."""
        batch, n_new, _ = hidden_states.shape
        shared, value = (
            project(hidden_states).view(batch, n_new, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.v_proj)
        )
        bucket = self.buckets(shared)
        query, key = apply_rotary_pos_emb(shared, normalize(shared, dim=-1), *position_embeddings)
        if past_key_values is not None:
            layer = past_key_values.layers[self.layer_idx] if past_key_values.layers else None
            if not isinstance(layer, HashedLayer):
                raise ValueError(f"past_key_values={type(past_key_values).__name__}: it holds no buckets; "
                                 "valid: model.new_cache(headroom)")  # fmt: skip
            key, value, bucket = layer.append(key, value, bucket)
        output = torch.cat(
            [
                _within_buckets(query[:, :, start : start + CHUNK], key, value, bucket, start - n_new)
                for start in range(0, n_new, CHUNK)
            ],
            dim=2,
        )
        return self.o_proj(output.transpose(1, 2).flatten(2)), None

    @torch.no_grad()
    def buckets(self, shared: Tensor) -> Tensor:
        """shared [B, H, T, D] → the bucket of each round, bytes [B, H, T, R]"""
        rotated = (shared @ self.rotations).unflatten(-1, (self.hashing.n_hashes, -1))
        return torch.cat([rotated, -rotated], -1).argmax(-1).to(torch.uint8)


def _within_buckets(query: Tensor, key: Tensor, value: Tensor, bucket: Tensor, before_end: int) -> Tensor:
    """Queries [B, H, T, D], of which the first is `before_end` (negative) from the end of N keys → [B, H, T, D]"""
    first = key.shape[2] + before_end
    end = first + query.shape[2]
    key, value, bucket = key[:, :, :end], value[:, :, :end], bucket[:, :, :end]
    query_bucket = bucket[:, :, first:]
    earlier = torch.ones(query.shape[2], end, dtype=torch.bool, device=query.device).tril(first - 1)
    mask = torch.zeros((), dtype=torch.bool, device=query.device)
    for own, other in zip(query_bucket.unbind(-1), bucket.unbind(-1), strict=True):
        mask = mask | (own[..., :, None] == other[..., None, :])
    mask = mask & earlier
    alone = ~mask.any(-1, keepdim=True)
    itself = torch.ones_like(earlier).triu(first).tril(first)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask | (alone & itself), scale=1.0)


class HashedLayer(OwnLayer):
    """Everything that was seen, with its buckets [B, H, capacity, R]."""

    buckets: Tensor

    def append(self, key: Tensor, value: Tensor, bucket: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The new tokens are held; → all keys, values and buckets. Raises ValueError where there is no room."""
        n_before = self.n_seen
        self.advance(key.shape[2])
        if not self.is_initialized:
            self.allocate(key, value, self.horizon)
            self.buckets = bucket.new_empty((*bucket.shape[:2], self.horizon, bucket.shape[3]))
        for held, new in ((self.keys, key), (self.values, value), (self.buckets, bucket)):
            held[:, :, n_before : self.n_seen] = new
        return tuple(held[:, :, : self.n_seen] for held in (self.keys, self.values, self.buckets))  # type: ignore[return-value]

    @property
    def bytes_logical(self) -> int:
        """Bytes of all tokens seen."""
        if not self.is_initialized:
            return 0
        return self.n_seen * sum(held[:, :, 0].nbytes for held in (self.keys, self.values, self.buckets))

    def reset(self) -> None:
        super().reset()
        self.buckets = None  # type: ignore[assignment]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.buckets = self.buckets[beam_idx]
