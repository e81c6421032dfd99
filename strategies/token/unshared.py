"""No sharing between layers: every layer holds its own keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from strategies.token.parts import Storages


class Unshared:
    may_evict = True

    def __call__(self, storages: Storages, layers: Sequence[int]) -> Storages:
        return storages
