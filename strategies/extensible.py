"""What a storage may do beyond the rest: take more tokens, and let the newest go, while the others stay untouched."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Extensible(Protocol):
    """Where it cannot, a layer that needs room reads all its tokens and loads them anew."""

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens."""
        ...

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        """Write any number of tokens [B, H, T, D] after the first `n_held`."""
        ...

    def truncate(self, n_held: int) -> None:
        """Keep the first `n_held` tokens."""
        ...
