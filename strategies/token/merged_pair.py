"""Two layers that share the directions of their keys and values, each with norms of its own (arXiv 2405.14366).

Tokens lie in three places: merged; the most distant of those beside it as they are, with norm 0 in the merged part; and
the newest, fewer than a block, as they are until both layers have a whole block of them. Nothing is rebuilt to attend:
a score is norm · (query · direction), and the norms of values go into the probabilities.

Shapes: B batch, H KV heads, G query heads of one, N tokens, M merged, R retained, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.append_only import AppendOnly
from strategies.folded import folded_attention
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.merging import Both, MergedTokens, Merging
from strategies.token.parts import Storage


class Shared:
    """What the two layers hold in common: directions [B, H, M, D], and the slots [B, H, R] of the retained."""

    n_merged = n_retained = 0

    def __init__(self, directions: Storage, merging: Merging) -> None:
        self.directions, self.merging = directions, merging
        self.slots = DenseStorage(Contiguous())

    def bytes_of(self, n_merged: int) -> int:
        return self.directions.bytes_of(n_merged) + self.slots.bytes_of(self.n_retained)

    def load(self, tokens: MergedTokens, capacity: int, room: int) -> None:
        self.directions.load(*tokens.directions, capacity)
        self.slots.load(*tokens.slots, room)

    def append(self, tokens: MergedTokens) -> None:
        """The next block; to whatever holds directions, tokens come one by one."""
        key, value = tokens.directions
        for i in range(key.shape[2]):
            self.directions.append(self.n_merged + i, key[:, :, i : i + 1], value[:, :, i : i + 1])
        first, second = tokens.slots
        self.slots.append(self.n_retained, first + self.n_merged, second + self.n_merged)

    def count(self, tokens: MergedTokens) -> None:
        self.n_merged += tokens.directions[0].shape[2]
        self.n_retained += tokens.slots[0].shape[2]

    def reorder(self, beam_idx: Tensor) -> None:
        self.directions.reorder(beam_idx)
        self.slots.reorder(beam_idx)


class LayerOfPair(AppendOnly):
    """What either layer has for itself: norms [B, H, M], originals of the retained [B, H, R, D] and the newest."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.norms, self.retained, self.newest = (DenseStorage(Contiguous()) for _ in range(3))
        self.capacity = 0

    def bytes_of(self, n_held: int) -> int:
        """Bytes of this layer's own and half of what is shared, of which keys and values take the same."""
        n_merged = self.shared.n_merged
        own = self.norms.bytes_of(n_merged) + self.retained.bytes_of(self.shared.n_retained)
        return own + self.newest.bytes_of(n_held - n_merged) + self.shared.bytes_of(n_merged) // 2

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, n_held, D], rebuilt; not for a decode step. Merged again they hardly change."""
        n_merged, n_retained = self.shared.n_merged, self.shared.n_retained
        parts = (
            self.shared.directions.tokens(n_merged),
            self.norms.tokens(n_merged),
            self.shared.slots.tokens(n_retained),
            self.retained.tokens(n_retained),
            self.newest.tokens(n_held - n_merged),
        )
        key, value = (
            torch.cat([(direction * norm).scatter_add_(2, slots.expand_as(kept), kept), new], dim=2)
            for direction, norm, slots, kept, new in zip(*parts, strict=True)
        )
        return key, value

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        """rows [B, H, G, D] with every held key → [B, H, G, N]."""
        n_merged, n_retained = self.shared.n_merged, self.shared.n_retained
        score = self.shared.directions.products(rows, n_merged) * _row(self.norms.keys, n_merged)
        slots = _row(self.shared.slots.keys, n_retained).expand(-1, -1, rows.shape[2], -1)
        score.scatter_add_(-1, slots, self.retained.products(rows, n_retained))
        return torch.cat([score, self.newest.products(rows, n_held - n_merged)], dim=-1)

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        """Sum of the held values by weight [B, H, G, N] → [B, H, G, D]."""
        n_merged, n_retained = self.shared.n_merged, self.shared.n_retained
        folded = weight[..., :n_merged] * _row(self.norms.values, n_merged)
        slots = _row(self.shared.slots.values, n_retained).expand(-1, -1, weight.shape[2], -1)
        return (
            self.shared.directions.weighted(folded, n_merged)
            + self.retained.weighted(weight.gather(-1, slots), n_retained)
            + self.newest.weighted(weight[..., n_merged:], n_held - n_merged)
        )

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        return self.attend_observed(query, n_held, mask, scaling=scaling, softcap=softcap)[0]

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        n_kv_heads = self.newest.keys.shape[1]
        return folded_attention(self, query, n_kv_heads, n_held, mask, scaling=scaling, softcap=softcap)

    def reorder(self, beam_idx: Tensor) -> None:
        for own in (self.norms, self.retained, self.newest):
            own.reorder(beam_idx)


class LowerLayer(LayerOfPair):
    """Comes first: what it is given waits as it is until the upper layer has its own."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.pending: DenseStorage | None = None

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens [B, H, n, D]; with one more, as where room ran out one follows at once."""
        self.pending = DenseStorage(Contiguous())
        self.pending.load(key, value, key.shape[2] + 1)

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        if self.pending:
            self.pending.append(n_held, key, value)
        else:
            self.newest.append(n_held - self.shared.n_merged, key, value)

    def bytes_of(self, n_held: int) -> int:
        return self.pending.bytes_of(n_held) if self.pending else super().bytes_of(n_held)

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        return self.pending.products(rows, n_held) if self.pending else super().products(rows, n_held)

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        return self.pending.weighted(weight, n_held) if self.pending else super().weighted(weight, n_held)


class UpperLayer(LayerOfPair):
    """Comes second and merges both."""

    def __init__(self, lower: LowerLayer) -> None:
        super().__init__(lower.shared)
        self.lower = lower

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens [B, H, n, D], and those of the lower layer, with room for `capacity`."""
        n_tokens, block_size = key.shape[2], self.shared.merging.block_size
        assert self.lower.pending is not None
        lower = self.lower.pending.tokens(n_tokens + 1)
        whole = slice(n_tokens // block_size * block_size)
        shared = self.shared
        tokens, self.least = shared.merging(_at(lower, whole), (key[:, :, whole], value[:, :, whole]), None)
        n_new, n_retained = whole.stop, tokens.slots[0].shape[2]
        most = capacity // block_size * block_size
        room = n_retained + (most - n_new) // block_size
        shared.load(tokens, most, room)
        shared.n_merged = shared.n_retained = 0
        shared.count(tokens)
        waiting = slice(whole.stop, None)
        for layer, norms, originals, all_tokens in zip(
            (self.lower, self), tokens.norms, tokens.originals, (lower, (key, value)), strict=True
        ):
            layer.capacity = capacity
            layer.norms.load(*norms, most)
            layer.retained.load(*originals, room)
            layer.newest.load(*_at(all_tokens, waiting), min(block_size, capacity - n_new))
        self.lower.pending = None

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        """Write the newest token; a whole block of them is merged."""
        shared, block_size = self.shared, self.shared.merging.block_size
        self.newest.append(n_held - shared.n_merged, key, value)
        if n_held + 1 - shared.n_merged < block_size:
            return
        tokens, _ = shared.merging(self.lower.newest.tokens(block_size), self.newest.tokens(block_size), self.least)
        for layer, norms, originals in zip((self.lower, self), tokens.norms, tokens.originals, strict=True):
            layer.norms.append(shared.n_merged, *norms)
            layer.retained.append(shared.n_retained, *originals)
        shared.append(tokens)
        shared.count(tokens)

    def reorder(self, beam_idx: Tensor) -> None:
        super().reorder(beam_idx)
        self.shared.reorder(beam_idx)
        self.least = self.least[0].index_select(0, beam_idx), self.least[1].index_select(0, beam_idx)


def _row(held: Tensor, n: int) -> Tensor:
    """One number for each token [B, H, capacity, 1] → [B, H, 1, n]."""
    return held[:, :, :n].transpose(-1, -2)


def _at(tokens: Both, where: slice) -> Both:
    return tokens[0][:, :, where], tokens[1][:, :, where]
