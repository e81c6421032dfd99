"""Adaptive allocation: one choice over all heads of a layer decides how many tokens each may hold (Ada-KV).

Paper: arXiv 2407.11550.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdaptiveAllocation:
    """Every layer has the same budget; its heads share it out by one top-k over all their scores.

    A head has at least the protected tokens and `floor` of its even share beside them. As in the paper the floor is set
    aside first; where the paper's code then scales the counts of a top-k over everything, here the floor's tokens are
    taken first and the top-k fills up the rest, so what is kept is what was chosen. Really smaller: see
    `strategies.ragged`. Where a scorer keeps one set for all heads there is nothing to share out.
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"allocation.floor={self.floor}: not a part of the even share; valid: 0 to 1")

    def __call__(self, kv_budget: int, n_layers: int, *, n_tokens: int | None, n_protected: int) -> list[int]:
        """Mean budget in tokens per KV head → budget of each layer."""
        return [kv_budget] * n_layers

    def heads(self, rank: Tensor, n_kept: int, n_protected: int) -> Tensor:
        """rank [B, H, N], the protected on top → tokens of each head [B, H], n_kept on average."""
        n_sure = n_protected + math.ceil(self.floor * (n_kept - n_protected))
        rank = rank.to(torch.promote_types(rank.dtype, torch.float32)).scatter(-1, rank.topk(n_sure).indices, math.inf)
        chosen = rank.flatten(1).topk(n_kept * rank.shape[1]).indices // rank.shape[2]
        return torch.zeros_like(rank[..., 0], dtype=torch.long).scatter_add_(1, chosen, torch.ones_like(chosen))
