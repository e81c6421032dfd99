"""Contiguous placement: one block of the model's own device per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.token.parts import Encoding, Storage, Storages


class Contiguous:
    def storages(self, encodings: Sequence[Encoding]) -> Storages:
        def storage(layer_idx: int) -> Storage:
            return encodings[layer_idx](self)

        return storage

    def allocate(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised storage of `shape` with the dtype and device of `like`."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)
