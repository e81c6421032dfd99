"""A sliding window and every so-many-th token before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.model.longformer import Longformer
from strategies.model.patterns import Part, Pattern, part_of, require


@dataclass(frozen=True)
class Strided(Pattern):
    """The last `stride` tokens, and every `stride`-th before them (Sparse Transformer, arXiv 1904.10509, section 4.2).

    Each head sees the union of the paper's two patterns, its second way to integrate them. Every token is seen again
    by one query in `stride`, for ever: nothing can be dropped before the end is near, but little is read.
    """

    stride: int

    def __post_init__(self) -> None:
        require(1, stride=self.stride)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        return (distance >= 0) & ((distance < self.stride) | (distance % self.stride == 0))

    def keys(self, query: int) -> Tensor:
        first = max(query - self.stride + 1, 0)
        above = torch.arange(min(query % self.stride, first), first, self.stride)
        return torch.cat([above, torch.arange(first, query + 1)])

    def last_reader(self, horizon: int) -> Tensor:
        position = torch.arange(horizon)
        in_column = position + (horizon - 1 - position) // self.stride * self.stride
        return in_column.maximum((position + self.stride - 1).clamp(max=horizon - 1))

    def parts(self, n_tokens: int) -> list[Part]:
        """A window, and in each column the rows above."""
        column = torch.arange(self.stride)[:, None] + self.stride * torch.arange(-(-n_tokens // self.stride))
        column = column[: min(self.stride, n_tokens)]
        above = part_of(column, column, n_tokens, torch.gt)
        return [*Longformer(self.stride, n_global=0).parts(n_tokens), above]
