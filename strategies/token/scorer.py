"""What every scorer offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Scorer(Protocol):
    """Which tokens matter? Scorers hold no state: a token's score lies beside its slot, in the layer."""

    @property
    def n_sinks(self) -> int:
        """So many first tokens are never evicted, whatever they score."""
        ...

    @property
    def window_size(self) -> int:
        """So many newest tokens are never evicted, whatever they score."""
        ...

    @property
    def in_cache_positions(self) -> bool:
        """Whether rotary positions are counted inside the cache, which lets a stream outgrow the model."""
        ...

    @property
    def contiguous(self) -> bool:
        """Whether all held tokens lie, as the model sees them, within the budget's distance of the query.

        Then a window of the model's own that is at least as large as the budget needs no mask.
        """
        ...

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        """New key, value [B, H, T, D] and their positions [1, 1, T] → scores [b, h, T]; the highest are kept.

        b and h are 1 where the batch rows or the heads share one kept set.
        """
        ...
