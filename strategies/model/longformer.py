"""A sliding window and global tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.model.patterns import BLOCK, Part, Pattern, part_of, require


@dataclass(frozen=True)
class Longformer(Pattern):
    """The last `window` tokens, and the first `n_global` ones (arXiv 2004.05150).

    Global tokens see and are seen by all; in a decoder only the second is left, and only where they come first does
    everybody see them. They use the projections of all tokens. The paper's language model has no global tokens and
    widens its window from layer to layer; here it has one width. `n_global=0` is a plain sliding window.
    """

    window: int
    n_global: int

    def __post_init__(self) -> None:
        require(1, window=self.window)
        require(0, n_global=self.n_global)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((query - key < self.window) | (key < self.n_global))

    def keys(self, query: int) -> Tensor:
        first = max(query - self.window + 1, 0)
        return torch.cat([torch.arange(min(self.n_global, first)), torch.arange(first, query + 1)])

    def last_reader(self, horizon: int) -> Tensor:
        last = torch.arange(horizon) + self.window - 1
        last[: self.n_global] = horizon
        return last.clamp(max=horizon - 1)

    def parts(self, n_tokens: int) -> list[Part]:
        start = torch.arange(0, n_tokens, BLOCK)[:, None]
        recent = start + torch.arange(1 - self.window, BLOCK)
        everywhere = torch.arange(self.n_global).expand(len(start), -1)
        keys = torch.cat([everywhere, recent.where(recent >= self.n_global, -1)], 1)
        return [part_of(start + torch.arange(BLOCK), keys, n_tokens, self.visible)]
