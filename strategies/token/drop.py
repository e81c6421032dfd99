"""Evicted tokens are dropped: the newcomer takes the slot and nothing of the loser survives."""

from __future__ import annotations

from torch import Tensor


class Drop:
    def __call__(self, storage: object, slot: Tensor) -> None:
        """Called with the slots [b, h, 1] that are about to be overwritten."""
