"""Recency: the newest tokens matter (sliding-window attention; Longformer, arXiv 2004.05150)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RecencyScorer:
    """All layers and heads keep the same last tokens, so one row of scores serves them all."""

    n_sinks: int = 0
    window_size: int = 0
    in_cache_positions: bool = False
    contiguous: bool = True

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        return position
