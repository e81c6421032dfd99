"""Last query: what the newest token attends to is what matters now (TOVA, arXiv 2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TovaScorer:
    """A token's score is the attention of the newest query to it, averaged over heads: one kept set per layer."""

    n_sinks: int = 0
    window_size: int = 1
    in_cache_positions: bool = False
    contiguous: bool = False
    prompt_only: bool = False
    n_observed: int = 1

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        return key.new_zeros(key.shape[0], 1, key.shape[2], dtype=torch.promote_types(key.dtype, torch.float32))

    def observe(self, score: Tensor, received: Tensor, age: Tensor, n_queries: int) -> Tensor:
        return received.mean(1, keepdim=True)
