"""Heads that hold different numbers of tokens: a storage for each row and head, really smaller, never padded.

Shapes: B batch, H KV heads, G query heads of one, n tokens of the longest head, D head_dim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from strategies.append_only import AppendOnly
from strategies.token.parts import Storage

NOBODY = torch.iinfo(torch.int32).max  # the position of what a shorter head lacks: later than any query, so never seen


def aligned(rank: Tensor, n_held: Tensor) -> Tensor:
    """Indices [B, H, n] of the n_held [B, H] highest ranks [B, H, N] in slot order; short heads begin with -1."""
    n_longest = int(n_held.max())
    kept = rank.topk(n_longest, dim=-1).indices
    counted = torch.arange(n_longest, device=rank.device) < n_held[..., None]
    return kept.where(counted, -1).sort(-1).values


class RaggedStorage(AppendOnly):
    """All heads as if they were equally long, ending together: a head lacks its first `missing` [B][H] tokens."""

    def __init__(self, new_storage: Callable[[], Storage], missing: Tensor) -> None:
        self.missing: list[list[int]] = missing.tolist()
        self.heads = [[new_storage() for _ in row] for row in self.missing]

    @property
    def capacity(self) -> int:
        return self.heads[0][0].capacity + self.missing[0][0]

    def bytes_of(self, n_held: int) -> int:
        return sum(head.bytes_of(n_held - missing) for _, head, missing in self._each())

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """key, value [B, H, n, D], of which the missing are left out."""
        for at, head, missing in self._each():
            head.load(key[at][:, :, missing:], value[at][:, :, missing:], capacity - missing)

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        for at, head, missing in self._each():
            head.append(n_held - missing, key[at], value[at])

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, n_held, D], zeros where they are missing; not for a decode step."""
        rows = [[head.tokens(n_held - missing) for head, missing in zip(*row, strict=True)] for row in self._rows()]
        key, value = (
            torch.cat([torch.cat([_padded(pair[which], n_held) for pair in row], dim=1) for row in rows])
            for which in range(2)
        )
        return key, value

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        output, n_group = torch.empty_like(query), query.shape[1] // len(self.missing[0])
        for (row, kv_head), head, missing in self._each():
            at = row, slice(kv_head.start * n_group, kv_head.stop * n_group)
            seen = None if mask is None else mask.expand(*self.shape, 1, -1)[row, kv_head, :, missing:]
            output[at] = head.attend(query[at], n_held - missing, seen, scaling=scaling, softcap=softcap)
        return output

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("nothing is decided after heads have shared out their tokens")

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        raise NotImplementedError("heads of different lengths make no one product")

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        raise NotImplementedError("heads of different lengths make no one product")

    def reorder(self, beam_idx: Tensor) -> None:
        order = beam_idx.tolist()
        self.heads = [copy.deepcopy(self.heads[row]) for row in order]
        self.missing = [self.missing[row] for row in order]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.missing), len(self.missing[0])

    def _rows(self) -> Iterator[tuple[list[Storage], list[int]]]:
        return zip(self.heads, self.missing, strict=True)

    def _each(self) -> Iterator[tuple[tuple[slice, slice], Storage, int]]:
        """Where a head lies in [B, H, …], its storage, and how many tokens it lacks."""
        for b, row in enumerate(self._rows()):
            for h, (head, missing) in enumerate(zip(*row, strict=True)):
                yield (slice(b, b + 1), slice(h, h + 1)), head, missing


def _padded(tokens: Tensor, n_tokens: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, 0, n_tokens - tokens.shape[2], 0))
