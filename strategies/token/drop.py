"""Evicted tokens are dropped: the newcomer takes the slot and nothing of the loser survives."""

from __future__ import annotations

from torch import Tensor

from strategies.token.parts import Storage


class Drop:
    def __call__(self, storage: Storage, slot: Tensor) -> None:
        """Called with the slots [b, h, 1] that are about to be overwritten."""
