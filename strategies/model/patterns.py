"""Static sparse patterns of causal attention: which keys a query sees, and for how long a key is seen.

Positions are indices in the sequence. Every pattern answers the same four questions: `visible` is its definition;
`keys`, `last_reader` and `parts` say the same for one query, for the future of a key, and for a whole prompt in blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

BLOCK = 64  # queries that share their keys


class Part(NamedTuple):
    """Every query once, in G groups of c whose keys are k candidates. Several parts share no pair of query and key."""

    queries: Tensor  # [G, c]; those at n_tokens and above are padding
    keys: Tensor  # [G, k]
    mask: Tensor  # [G, c, k]


class Pattern(ABC):
    """One file each; frozen dataclasses, so that equal patterns share what is computed from them."""

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


def part_of(queries: Tensor, keys: Tensor, n_tokens: int, visible: Callable[[Tensor, Tensor], Tensor]) -> Part:
    """Keys outside the sequence are seen by nobody, and padding sees everything, so that no row of a mask is empty."""
    there = (keys >= 0) & (keys < n_tokens)
    mask = visible(queries[..., None], keys[:, None]) & there[:, None] | (queries >= n_tokens)[..., None]
    return Part(queries, keys.clamp(0, n_tokens - 1), mask)


def require(least: int, **fields: int) -> None:
    """Raises ValueError, naming field and value, for what is below `least`."""
    for name, value in fields.items():
        if value < least:
            raise ValueError(f"pattern.{name}={value}: too small; valid: {least} or more")
