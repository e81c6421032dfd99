"""Evicted tokens are dropped: the newcomer takes the slot and nothing of the loser survives."""

from __future__ import annotations

from torch import Tensor

from strategies.token.parts import Storage


class Drop:
    def of_layer(self, layer_idx: int, n_layers: int) -> Drop:
        return self

    def keep(self, key: Tensor, value: Tensor, kept: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, None]:
        index = kept[..., None].expand(*key.shape[:2], -1, key.shape[3])
        return key.gather(2, index), value.gather(2, index), None

    def replace(self, storage: Storage, n_held: int, slot: Tensor, key: Tensor, memory: Tensor | None) -> None:
        """Nothing to do before the overwrite."""
