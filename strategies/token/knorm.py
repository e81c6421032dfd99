"""Key norm: tokens with short keys receive most attention (Devoto et al., arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KNormScorer:
    """Keeps the shortest keys, head by head; needs no attention. Rotary positions do not change a norm."""

    n_sinks: int = 0
    window_size: int = 0
    in_cache_positions: bool = False
    contiguous: bool = False

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        return -key.norm(dim=-1, dtype=torch.promote_types(key.dtype, torch.float32))
