"""Random eviction: the control that any scorer has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomScorer:
    """Keeps the newest `window_size` tokens and a uniform random sample of all others.

    A token's score is a hash of (seed, layer, head, position): a sample without replacement that needs no generator
    state, so it is the same for every batch row and in every run.
    """

    window_size: int = 16
    seed: int = 0
    n_sinks: int = 0
    in_cache_positions: bool = False
    contiguous: bool = False

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        head = torch.arange(key.shape[1], device=key.device)[None, :, None]
        stream = _mix(head + 1_000_003 * layer_idx + 1_000_000_007 * self.seed)
        return _mix(position ^ stream)


def _mix(number: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, which wraps around as unsigned arithmetic would."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        number = (number ^ _logical_right(number, shift)) * factor
    return number ^ _logical_right(number, 31)


def _logical_right(number: Tensor, shift: int) -> Tensor:
    return (number >> shift) & ((1 << (64 - shift)) - 1)
