"""Contiguous placement: one block of the model's own device per layer."""

from __future__ import annotations

import torch
from torch import Tensor


class Contiguous:
    def allocate(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised storage of `shape` with the dtype and device of `like`."""
        return torch.empty(shape, dtype=like.dtype, device=like.device)
