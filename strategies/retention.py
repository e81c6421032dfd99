"""What one layer keeps: scorer, allocation and schedule brought together for it.

Shapes: B batch, H KV heads, N tokens; b is 1 or B, h is 1 or H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.token.parts import Observer, OnEvict, Schedule, Scorer


@dataclass(frozen=True)
class Retention:
    """So many tokens per KV head, chosen by the scorer.

    `kv_budget` is the mean over all layers, None keeps everything. `share` makes of it what this one layer may hold,
    given the length of the prompt where that is all there is to choose from, else None. `heads` shares that out between
    heads, given ranks [B, H, N] and the tokens that are kept on average → [B, H]; None where all have the same.
    """

    kv_budget: int | None
    share: Callable[[int | None], int | None]
    scorer: Scorer
    schedule: Schedule
    on_evict: OnEvict
    heads: Callable[[Tensor, int], Tensor] | None = None

    @property
    def observer(self) -> Observer | None:
        """The scorer, where it has to be shown attention and something may be evicted."""
        return self.scorer if self.kv_budget is not None and isinstance(self.scorer, Observer) else None

    @property
    def step_observer(self) -> Observer | None:
        """The same, where something may be evicted after the prompt too."""
        return None if self.schedule.decides_once else self.observer

    def ranked(self, score: Tensor, position: Tensor, *, newest: Tensor) -> Tensor:
        """Scores [b, h, N] with the protected tokens on top: the sinks, and the window that ends at `newest`."""
        top = torch.finfo(score.dtype).max if score.is_floating_point() else torch.iinfo(score.dtype).max
        if self.scorer.n_sinks:
            score = score.masked_fill(position < self.scorer.n_sinks, top)
        if self.scorer.window_size:
            score = score.masked_fill(position > newest - self.scorer.window_size, top)
        return score
