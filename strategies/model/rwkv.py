"""The state of RWKV-4 (arXiv 2305.13048), held layer by layer and shown to Transformers' model as it expects it.

Shapes: B batch, H hidden_size, A attention_hidden_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

N_TENSORS = 5
N_SHIFTED = 2  # of them: the last inputs of the feed-forward and of the attention half
NOTHING = -1e30  # the largest exponent of no tokens


class RwkvLayer:
    """`held`: the last inputs of the feed-forward and the attention half [B, H]; the numerator, denominator and largest
    exponent of the mean of values [B, A], in float32.
    """

    def __init__(self) -> None:
        self.held: list[Tensor] = []

    def allocate(self, batch: int, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        """For `batch` rows that have seen no token."""
        shifted = [torch.zeros(batch, config.hidden_size, dtype=dtype, device=device) for _ in range(N_SHIFTED)]
        sums = [torch.zeros(batch, config.attention_hidden_size, device=device, dtype=torch.float32) for _ in range(2)]
        self.held = [*shifted, *sums, torch.full_like(sums[0], NOTHING)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.held = [tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in self.held]


class Column:
    """One of the five tensors of all layers, in the place of one [B, H, n_layers]: read and written by `[:, :, layer]`.

    `as_sequence`: read as [B, 1, H], as a single token is mixed with what came before. Transformers' model would take a
    plain [B, H] for a sequence of B tokens, and is right for one row only.
    """

    def __init__(self, layers: list[RwkvLayer], which: int, as_sequence: bool) -> None:
        self.layers, self.which, self.as_sequence = layers, which, as_sequence

    def __getitem__(self, index: tuple[slice, slice, int]) -> Tensor:
        held = self.layers[index[-1]].held[self.which]
        return held[:, None] if self.as_sequence else held

    def __setitem__(self, index: tuple[slice, slice, int], value: Tensor) -> None:
        self.layers[index[-1]].held[self.which].copy_(value)


def columns(layers: list[RwkvLayer], *, one_token: bool) -> list[Column]:
    """What the model takes as `state`, for a forward pass of `one_token` or of several."""
    return [Column(layers, which, one_token and which < N_SHIFTED) for which in range(N_TENSORS)]
