"""Heavy hitters: tokens that have received much attention so far will receive more (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class H2OScorer:
    """Accumulates the attention that a token receives, in the prompt and in every step, per KV head.

    The paper keeps heavy hitters and newest tokens in equal parts; here the `window_size` newest are protected.
    Old tokens collect more by their age alone: `per_query` divides by the number of queries that could see a token.
    A token is evicted before the step that needs its slot, so a step attends to the budget; the paper's code attends to
    one token more and evicts after.
    """

    window_size: int = 32
    per_query: bool = False
    n_sinks: int = 0
    in_cache_positions: bool = False
    contiguous: bool = False
    prompt_only: bool = False
    n_observed: int | None = None

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        return key.new_zeros(key.shape[:3], dtype=torch.promote_types(key.dtype, torch.float32))

    def observe(self, score: Tensor, received: Tensor, age: Tensor, n_queries: int) -> Tensor:
        if not self.per_query:
            return score + received
        return (score * (age - n_queries).clamp(min=0) + received) / age
