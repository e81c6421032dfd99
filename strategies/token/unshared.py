"""No sharing between layers: every layer holds its own keys and values."""

from __future__ import annotations

from strategies.token.parts import Storages


class Unshared:
    may_evict = True

    def __call__(self, storages: Storages, n_layers: int) -> Storages:
        return storages
