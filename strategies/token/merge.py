"""Evicted values merge into their nearest kept neighbours (D2O, arXiv 2406.13035)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from strategies.observed import weights_at_once
from strategies.token.drop import Drop
from strategies.token.parts import OnEvict, Storage


@dataclass(frozen=True)
class Merge:
    """A loser's value joins the value of the kept key that is most similar to its own by cosine, if similar enough.

    Similar enough is at least the threshold: the mean of the best similarities of the losers at first, then
    (1 - smoothing) · threshold + smoothing · mean, taken before it is applied. A loser has the weight exp(similarity),
    the value that it joins exp(1), and they are averaged: as in the paper, where its code takes the plain mean of
    values that are scaled by their similarities. `smoothing` is that of the code.

    Where we differ: only values merge, keys stay as they are; thresholds are kept for every row and KV head, where the
    code has one per layer; of the first `n_first` layers and the last `n_last` the paper evicts nothing, here they
    evict as all others do and drop what they evict. Losers do not merge with the token that takes their slot.

    Memory [B, H, 1 + N]: the threshold, and the lengths of the held keys.
    """

    smoothing: float = 0.5
    n_first: int = 2
    n_last: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"on_evict.smoothing={self.smoothing}: is no share; valid: 0 … 1")
        if self.n_first < 0 or self.n_last < 0:
            raise ValueError(f"on_evict.n_first={self.n_first}, on_evict.n_last={self.n_last}: cannot be left alone; "
                             "valid: 0 or more")  # fmt: skip

    def of_layer(self, layer_idx: int, n_layers: int) -> OnEvict:
        return self if self.n_first <= layer_idx < n_layers - self.n_last else Drop()

    def keep(
        self, key: Tensor, value: Tensor, kept: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losers that join the same value are averaged with it at once."""
        lost = _others(kept, key.shape[2])
        (kept_key, kept_value), (lost_key, lost_value) = ((_at(key, i), _at(value, i)) for i in (kept, lost))
        length = _length(kept_key)
        similarity, nearest = _nearest(lost_key / _length(lost_key)[..., None], kept_key / length[..., None])
        threshold = self._threshold(memory, similarity)
        weight = torch.where(similarity >= threshold, similarity.exp(), 0.0)
        memory = torch.cat([threshold, length], dim=-1)
        return kept_key, _joined(kept_value, lost_value, nearest, weight), memory

    def replace(self, storage: Storage, n_held: int, slot: Tensor, key: Tensor, memory: Tensor | None) -> Tensor:
        if memory is None or memory.shape[2] != n_held + 1:  # the first loser, or tokens were appended since the last
            memory = self._measured(storage.tokens(n_held)[0], memory)
        slot = slot.expand(*memory.shape[:2], -1)
        lost_key, lost_value = storage.at(slot)
        unit = lost_key / _length(lost_key)[..., None].to(lost_key.dtype)  # two whole keys overflow in half precision
        similarity = storage.products(unit, n_held)[:, :, 0] / memory[..., 1:]
        best, nearest = similarity.scatter(-1, slot, -math.inf).max(-1, keepdim=True)
        memory[..., :1] = threshold = self._threshold(memory, best)
        kept_value = storage.at(nearest)[1]
        share = (best.exp() / (best.exp() + math.e))[..., None]
        mixed = kept_value + share * (lost_value - kept_value)
        # What is dropped is written to its own slot, which is about to be overwritten.
        storage.write_value(torch.where(best >= threshold, nearest, slot), mixed.to(kept_value.dtype))
        return memory.scatter_(-1, slot + 1, _length(key))

    def _threshold(self, memory: Tensor | None, similarity: Tensor) -> Tensor:
        """After losers with these best similarities [B, H, n] → [B, H, 1]."""
        now = similarity.mean(-1, keepdim=True)
        if memory is None:
            return now
        before = memory[..., :1]
        return torch.where(before.isnan(), now, torch.lerp(before, now, self.smoothing))

    def _measured(self, key: Tensor, memory: Tensor | None) -> Tensor:
        """The memory for the held keys [B, H, N, D]; NaN for a threshold that is still to come."""
        length = _length(key)
        threshold = length.new_full((*length.shape[:2], 1), math.nan) if memory is None else memory[..., :1]
        return torch.cat([threshold, length], dim=-1)


def _others(kept: Tensor, n_tokens: int) -> Tensor:
    """The indices below `n_tokens` that are not in `kept` [b, h, K], in order."""
    is_kept = kept.new_zeros((*kept.shape[:2], n_tokens)).scatter_(-1, kept, 1)
    return is_kept.argsort(dim=-1, stable=True)[..., : n_tokens - kept.shape[2]]


def _at(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(2, index[..., None].expand(*tokens.shape[:2], -1, tokens.shape[3]))


def _length(key: Tensor) -> Tensor:
    """Of keys [B, H, n, D] → [B, H, n], never zero."""
    length = torch.linalg.vector_norm(key, dim=-1, dtype=torch.promote_types(key.dtype, torch.float32))
    return length.clamp(min=torch.finfo(length.dtype).tiny)


def _nearest(lost: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The best similarity of each of the unit vectors lost [B, H, L, D] to one of kept [B, H, K, D], and to which.

    The similarities of all pairs do not exist at once.
    """
    best = lost.new_empty(lost.shape[:3])
    index = torch.empty_like(best, dtype=torch.long)
    n_lost = max(weights_at_once(kept.device) // kept.shape[2], 1)
    for row, head in product(range(lost.shape[0]), range(lost.shape[1])):
        for start in range(0, lost.shape[2], n_lost):
            some = row, head, slice(start, start + n_lost)
            best[some], index[some] = (lost[some] @ kept[row, head].T).max(-1)
    return best, index


def _joined(kept: Tensor, lost: Tensor, nearest: Tensor, weight: Tensor) -> Tensor:
    """Kept values [B, H, K, D], averaged with the lost ones [B, H, L, D] that join them by weight [B, H, L]."""
    total = weight.new_zeros(kept.shape[:3]).scatter_add_(-1, nearest, weight)[..., None]
    index = nearest[..., None].expand_as(lost)
    joining = weight.new_zeros(kept.shape).scatter_add_(2, index, weight[..., None] * lost)
    return (kept + (joining - total * kept) / (total + math.e)).to(kept.dtype)  # exactly kept where nothing joins
