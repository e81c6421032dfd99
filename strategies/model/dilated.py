"""A sliding window with gaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.model.patterns import BLOCK, Part, Pattern, part_of, require


@dataclass(frozen=True)
class Dilated(Pattern):
    """`window` tokens, `dilation` apart (arXiv 2004.05150, section 3.1).

    Layers must differ in their dilation, or tokens of different remainders would never meet.
    """

    window: int
    dilation: int

    def __post_init__(self) -> None:
        require(1, window=self.window, dilations=self.dilation)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        return (distance >= 0) & (distance < self.window * self.dilation) & (distance % self.dilation == 0)

    def keys(self, query: int) -> Tensor:
        n_before = min(self.window - 1, query // self.dilation)
        return torch.arange(query - n_before * self.dilation, query + 1, self.dilation)

    def last_reader(self, horizon: int) -> Tensor:
        position = torch.arange(horizon)
        n_after = ((horizon - 1 - position) // self.dilation).clamp(max=self.window - 1)
        return position + n_after * self.dilation

    def parts(self, n_tokens: int) -> list[Part]:
        """Within one remainder this is a sliding window."""
        remainder = torch.arange(min(self.dilation, n_tokens))[:, None]
        start = torch.arange(0, -(-n_tokens // self.dilation), BLOCK)[None]
        at = (remainder + self.dilation * start).flatten()[:, None]
        at = at[at[:, 0] < n_tokens]
        keys = at + self.dilation * torch.arange(1 - self.window, BLOCK)
        return [part_of(at + self.dilation * torch.arange(BLOCK), keys, n_tokens, self.visible)]
