"""What each layer that attends holds of a token, and whom its queries see: from a Transformers configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

HORIZON = 1 << 16  # tokens; a pattern under which all of the first half are seen after it lets no token go


@dataclass(frozen=True)
class AttentionLayer:
    """One layer with attention, of one sequence."""

    n_numbers: int  # of the model's dtype, for each token that is held
    n_bytes: int  # beside them, whatever the dtype
    n_products: int  # for each query and key that it sees, all heads: of the score and of the weighted value
    window: int | None  # so many tokens are held at most; None: all
    pattern: Any | None = None  # who sees whom, where that is not the window or everything before

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.n_numbers * dtype.itemsize + self.n_bytes

    def n_held(self, n_seen: int) -> int:
        return n_seen if self.window is None else min(n_seen, self.window)

    def n_pairs(self, seq_len: int) -> float:
        """Pairs of a query and a key that it sees among `seq_len` tokens; one's own token counts half, as in T² / 2."""
        if self.pattern is not None:
            return _visible_pairs(self.pattern, seq_len)
        n_seen = self.n_held(seq_len)
        return n_seen * seq_len - n_seen**2 / 2


def attention_layers(config: Any) -> list[AttentionLayer]:
    """In order; recurrent and convolution layers are not among them."""
    if not hasattr(config, "num_attention_heads"):
        return []
    pattern_of = getattr(config, "pattern_of", lambda layer_idx: None)  # of a sparse architecture
    return [
        _layer(config, layer, pattern_of(layer_idx))
        for layer_idx, layer in enumerate(DynamicCache(config=config).layers)
        if isinstance(layer, DynamicLayer)
    ]


def _layer(config: Any, layer: DynamicLayer, pattern: Any | None) -> AttentionLayer:
    n_heads = config.num_attention_heads
    if latent := getattr(config, "kv_lora_rank", None):
        n_query = config.qk_nope_head_dim + config.qk_rope_head_dim
        return AttentionLayer(latent + config.qk_rope_head_dim, 0, n_heads * (n_query + config.v_head_dim), None)
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    window = int(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else None
    held, products = 2 * n_kv_heads * head_dim, 2 * n_heads * head_dim
    if pattern is None:
        return AttentionLayer(held, 0, products, window)
    if not hasattr(pattern, "last_reader"):  # hashing: no key is ever out of sight, and each has a byte for each round
        return AttentionLayer(held, n_kv_heads * pattern.n_hashes, products, None)
    return AttentionLayer(held, 0, products, _window_of(pattern), pattern)


@cache
def _window_of(pattern: Any) -> int | None:
    """Tokens that are still seen half-way to the horizon; None where these are all."""
    n_seen = HORIZON // 2
    n_alive = int((pattern.last_reader(HORIZON)[:n_seen] >= n_seen - 1).sum())
    return None if n_alive == n_seen else n_alive


@cache
def _visible_pairs(pattern: Any, seq_len: int) -> int:
    return sum(len(pattern.keys(query)) for query in range(seq_len))
