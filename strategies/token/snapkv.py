"""Observation window: the end of the prompt shows which of its tokens an answer needs (SnapKV, arXiv 2404.14469)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d


@dataclass(frozen=True)
class SnapKVScorer:
    """Attention of the last `window_size` queries, summed, and pooled over `kernel_size` neighbouring keys.

    Per KV head, where the code of the paper scores every query head for itself. The window stays.
    Defaults are those of the paper's code (32, 5, average); its LongBench runs use 8, 7, maximum.
    """

    window_size: int = 32
    kernel_size: int = 5
    pooling: str = "avg"
    n_sinks: int = 0
    in_cache_positions: bool = False
    contiguous: bool = False
    prompt_only: bool = True

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"scorer.kernel_size={self.kernel_size}: has no middle; valid: 1, 3, 5, …")
        if self.pooling not in _POOLING:
            raise ValueError(f"scorer.pooling={self.pooling}: unknown; valid: {', '.join(_POOLING)}")

    @property
    def n_observed(self) -> int:
        return self.window_size

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        return key.new_zeros(key.shape[:3], dtype=torch.promote_types(key.dtype, torch.float32))

    def observe(self, score: Tensor, received: Tensor, age: Tensor, n_queries: int) -> Tensor:
        before, window = received.split([received.shape[-1] - n_queries, n_queries], dim=-1)
        if not before.shape[-1]:
            return received
        pooled = _POOLING[self.pooling](before, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return torch.cat([pooled, window], dim=-1)


_POOLING: dict[str, Callable[..., Tensor]] = {"avg": avg_pool1d, "max": max_pool1d}
