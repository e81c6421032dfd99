"""Pyramid allocation: much for the first layers, little for the last (PyramidKV, arXiv 2406.02069)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class PyramidAllocation:
    """Budgets beside the protected window fall arithmetically from layer to layer; the last has 1 / beta of the mean.

    As in the paper's code no layer gets more than the prompt has, and the rest then goes to the others. Its floors hand
    out more than the budget; here the mean over layers is the budget, to within the one rounding of their sum.
    """

    beta: float = 20.0

    def __post_init__(self) -> None:
        if self.beta < 1:
            raise ValueError(f"allocation.beta={self.beta}: the last layer would get most; valid: 1 or more")

    def __call__(self, kv_budget: int, n_layers: int, *, n_tokens: int | None, n_protected: int) -> list[int]:
        """Mean budget in tokens per KV head → budget of each layer."""
        mean = kv_budget - n_protected
        high = 2 * mean - mean / self.beta
        if n_tokens is not None:
            high = max(min(high, n_tokens - n_protected), mean)
        step = 2 * (high - mean) / max(n_layers - 1, 1)
        first = high if n_layers > 1 else mean
        return [n_protected + share for share in whole([first - step * layer for layer in range(n_layers)])]


def whole(shares: list[float]) -> list[int]:
    """Whole numbers with the same running sums, to half a token."""
    return [round(end) - round(start) for start, end in pairwise(accumulate(shares, initial=0.0))]
