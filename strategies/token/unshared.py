"""No sharing between layers: every layer holds its own keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Layer = TypeVar("Layer")


class Unshared:
    def __call__(self, make_layer: Callable[[int], Layer], n_layers: int) -> list[Layer]:
        return [make_layer(layer_idx) for layer_idx in range(n_layers)]
