"""Blocks that see a window of blocks, global ones and random ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

import torch
from torch import Tensor

from strategies.model.patterns import Part, Pattern, part_of, require


@dataclass(frozen=True)
class BigBird(Pattern):
    """Blocks of `block` tokens see `n_window` blocks up to their own, the first `n_global`, and `n_random` between them
    (arXiv 2007.14062).

    Causal: the paper's window has as many blocks to the right, and its random blocks may lie there. They are drawn
    anew in every layer; in the paper in every head, which would keep almost every token alive for some head.
    """

    block: int
    n_window: int
    n_global: int
    n_random: int
    layer_idx: int

    def __post_init__(self) -> None:
        require(1, block=self.block, n_window=self.n_window)
        require(0, n_global=self.n_global, n_random=self.n_random)

    def drawn(self, n_blocks: int) -> Tensor:
        """The random blocks of the first `n_blocks` blocks [n_blocks, n_random]; -1 where there are not so many."""
        drawn = [_draw(self.layer_idx, i, self.n_global, i - self.n_window + 1, self.n_random) for i in range(n_blocks)]
        return torch.tensor(drawn, dtype=torch.long).view(n_blocks, self.n_random)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        own, other = query // self.block, key // self.block
        drawn = self.drawn(int(own.max()) + 1)[own]
        chosen = (drawn == other[..., None]).any(-1)
        return (key <= query) & ((own - other < self.n_window) | (other < self.n_global) | chosen)

    def keys(self, query: int) -> Tensor:
        own = query // self.block
        first = max(own - self.n_window + 1, 0)
        drawn = sorted(_draw(self.layer_idx, own, self.n_global, first, self.n_random))
        blocks = [*range(min(self.n_global, first)), *(block for block in drawn if block >= 0)]
        seen = self.block * torch.tensor(blocks, dtype=torch.long)[:, None] + torch.arange(self.block)
        return torch.cat([seen.flatten(), torch.arange(self.block * first, query + 1)])

    def last_reader(self, horizon: int) -> Tensor:
        n_blocks = -(-horizon // self.block)
        reader = torch.arange(n_blocks)
        drawn = self.drawn(n_blocks)
        last = reader + self.n_window - 1
        there = drawn >= 0
        last.scatter_reduce_(0, drawn[there], reader[:, None].expand_as(drawn)[there], "amax")
        last[: self.n_global] = n_blocks
        return ((last + 1) * self.block - 1).clamp(max=horizon - 1).repeat_interleave(self.block)[:horizon]

    def parts(self, n_tokens: int) -> list[Part]:
        own = torch.arange(-(-n_tokens // self.block))[:, None]
        window = own - torch.arange(self.n_window)
        everywhere = torch.arange(self.n_global).expand(len(own), -1)
        blocks = torch.cat([everywhere, window.where(window >= self.n_global, -1), self.drawn(len(own))], 1)
        within = torch.arange(self.block)
        keys = (blocks[..., None] * self.block + within).flatten(1)
        return [part_of(own * self.block + within, keys, n_tokens, self.visible)]


@cache
def _draw(layer_idx: int, own: int, start: int, stop: int, n: int) -> tuple[int, ...]:
    """`n` different blocks of [start, stop), padded with -1; the same in every version of Python."""
    random, drawn = Random(f"layer {layer_idx}, block {own}"), set[int]()
    n_there = min(n, max(stop - start, 0))
    while len(drawn) < n_there:
        drawn.add(start + int(random.random() * (stop - start)))
    return *sorted(drawn), *[-1] * (n - n_there)
