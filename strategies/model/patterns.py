"""Static sparse patterns of causal attention: which key positions a query position sees, and for how long a key is seen.

Positions are indices in the sequence. Every pattern answers the same four questions: `visible` is its definition;
`keys`, `last_reader` and `parts` say the same for one query, for the future of a key, and for a whole prompt in blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # queries that share their keys


class Part(NamedTuple):
    """Every query once, in G groups of c whose keys are k candidates. Several parts share no pair of query and key."""

    queries: Tensor  # [G, c]; those at n_tokens and above are padding
    keys: Tensor  # [G, k]
    mask: Tensor  # [G, c, k]


class Pattern(ABC):
    """Frozen dataclasses, so that equal patterns share what is computed from them."""

    @abstractmethod
    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the query at `query` sees the key at `key`; shapes broadcast."""

    @abstractmethod
    def keys(self, query: int) -> Tensor:
        """All positions that `query` sees, ascending [n]."""

    @abstractmethod
    def last_reader(self, horizon: int) -> Tensor:
        """For each position below `horizon` the last one below it that sees it [horizon]; after that it is dead."""

    @abstractmethod
    def parts(self, n_tokens: int) -> list[Part]:
        """Attention of `n_tokens` on themselves as blocks, so that its cost goes by what is visible."""


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
        return [_part(start + torch.arange(BLOCK), keys, n_tokens, self.visible)]


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
        return [_part(at + self.dilation * torch.arange(BLOCK), keys, n_tokens, self.visible)]


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
        return torch.cat([torch.arange(query % self.stride, first, self.stride), torch.arange(first, query + 1)])

    def last_reader(self, horizon: int) -> Tensor:
        position = torch.arange(horizon)
        in_column = position + (horizon - 1 - position) // self.stride * self.stride
        return in_column.maximum((position + self.stride - 1).clamp(max=horizon - 1))

    def parts(self, n_tokens: int) -> list[Part]:
        """A window, and in each column the rows above."""
        column = torch.arange(self.stride)[:, None] + self.stride * torch.arange(-(-n_tokens // self.stride))
        column = column[: min(self.stride, n_tokens)]
        above = _part(column, column, n_tokens, torch.gt)
        return [*Longformer(self.stride, n_global=0).parts(n_tokens), above]


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
        return [_part(own * self.block + within, keys, n_tokens, self.visible)]


@cache
def _draw(layer_idx: int, own: int, start: int, stop: int, n: int) -> tuple[int, ...]:
    """`n` different blocks of [start, stop), padded with -1; the same in every version of Python."""
    random, drawn = Random(f"layer {layer_idx}, block {own}"), set[int]()
    n_there = min(n, max(stop - start, 0))
    while len(drawn) < n_there:
        drawn.add(start + int(random.random() * (stop - start)))
    return *sorted(drawn), *[-1] * (n - n_there)


def _part(queries: Tensor, keys: Tensor, n_tokens: int, visible: Callable[[Tensor, Tensor], Tensor]) -> Part:
    """Keys outside the sequence are seen by nobody, and padding sees everything, so that no row of a mask is empty."""
    there = (keys >= 0) & (keys < n_tokens)
    mask = visible(queries[..., None], keys[:, None]) & there[:, None] | (queries >= n_tokens)[..., None]
    return Part(queries, keys.clamp(0, n_tokens - 1), mask)


def require(least: int, **fields: int) -> None:
    """Raises ValueError, naming field and value, for what is below `least`."""
    for name, value in fields.items():
        if value < least:
            raise ValueError(f"pattern.{name}={value}: too small; valid: {least} or more")
