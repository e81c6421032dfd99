"""Ratio allocation: quarters of the layers hold fixed parts, as in an earlier study of PyramidKV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strategies.token.pyramid import whole


@dataclass(frozen=True)
class RatioAllocation:
    """A layer's budget is to the mean budget as its ratio to the mean ratio; ratios are spread evenly over the layers.

    The study took ratios of the tokens seen so far, even of the first few, so it evicted below any budget. Here they
    are ratios of the budget: with a mean ratio of the final length as budget, both end with the same tokens.
    """

    ratios: Sequence[float] = (1.0, 1.0, 0.5, 0.25)

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"allocation.ratios={list(self.ratios)}: not parts of a whole; valid: above 0, at most 1")

    def __call__(self, kv_budget: int, n_layers: int, *, n_tokens: int | None, n_protected: int) -> list[int]:
        """Mean budget in tokens per KV head → budget of each layer."""
        of_layer = [self.ratios[layer * len(self.ratios) // n_layers] for layer in range(n_layers)]
        open_budget = (kv_budget - n_protected) * n_layers
        shares = _filled(of_layer, open_budget, n_tokens and n_tokens - n_protected)
        return [n_protected + share for share in whole(shares)]


def _filled(ratios: Sequence[float], total: float, most: int | None) -> list[float]:
    """`total` in proportion to the ratios, none above `most`; what is left over goes to the others."""
    full: set[int] = set()
    while True:
        rest = total - len(full) * (most or 0)
        unit = rest / (sum(ratio for layer, ratio in enumerate(ratios) if layer not in full) or 1.0)
        over = {layer for layer, ratio in enumerate(ratios) if layer not in full and most and ratio * unit > most}
        if not over:
            return [float(most or 0) if layer in full else ratio * unit for layer, ratio in enumerate(ratios)]
        full |= over
