"""Paged placement: tokens lie in blocks of a pool, and a table says whose they are (arXiv 2309.06180).

Unlike in vLLM, each layer has tables of its own, since layers may keep different tokens; and the pool is as large as
the batch at hand asks for, not what the device has left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from strategies.folded import folded_attention
from strategies.system.blocks import BlockManager, OutOfBlocks
from strategies.system.pages import DensePages, Pages, Parts, gathered, pages_of
from strategies.token.contiguous import Contiguous
from strategies.token.host import HostRoom
from strategies.token.parts import Encoding, Storage, Storages
from strategies.token.split import can_split, split_paged_attention


class Paged:
    """Blocks of `block_size` tokens. Rows that begin alike, as beams do and what follows one prompt, share them."""

    def __init__(self, *, block_size: int = 16) -> None:
        if block_size < 1:
            raise ValueError(f"placement.block_size={block_size}: a block holds tokens; valid: 1 or more")
        self.block_size = block_size

    def storages(self, encodings: Sequence[Encoding]) -> Storages:
        def storage(layer_idx: int) -> Storage:
            pages = pages_of(encodings[layer_idx](Contiguous()))
            assert pages is not None, "see strategies.composition"
            return PagedStorage(pages, self.block_size)

        return storage


class PagedStorage:
    """Pools [N, H, P, ...] of an encoding's tensors and a table [B, n], over the books of a `BlockManager`.

    Blocks are shared until they are written. A pool that has too few is copied into a larger one; tables stay.
    """

    overwrites = True
    capacity = 0
    pools: Parts = ()
    table: Tensor

    def __init__(self, pages: Pages, block_size: int) -> None:
        self.pages = pages
        self.blocks = BlockManager(0, block_size)
        self.rows: list[int] = []  # the sequence of each batch row
        self.n_sequences = 0  # so far
        self.saved: dict[int, Parts] = {}  # of sequences that are swapped out
        self.may_share = False

    def bytes_of(self, n_held: int) -> int:
        """Bytes that `n_held` tokens of each row take; those that rows share count once."""
        filled: dict[int, int] = {}
        for row in self.rows:
            for i, block in enumerate(self.blocks.table(row)):
                n_filled = min(max(n_held - i * self.blocks.block_size, 0), self.blocks.block_size)
                filled[block] = max(filled.get(block, 0), n_filled)
        return sum(filled.values()) * sum(pool[:1, :, :1].nbytes for pool in self.pools)

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens [B, H, n, D], with room for `capacity`."""
        parts = self.pages.cut(key, value)
        n_rows, n_tokens, block_size = len(key), key.shape[2], self.blocks.block_size
        n_alike = [0, *(_n_alike(parts, row, block_size) for row in range(1, n_rows))]
        self.capacity, self.saved = capacity, {}
        self.blocks = BlockManager(0, block_size)
        n_blocks = n_rows * self.blocks.blocks_of(capacity) - sum(n_alike) // block_size
        self.blocks.grow(n_blocks)
        self.rows = self._new_sequences(n_rows)
        for i, row in enumerate(self.rows):
            if n_alike[i]:
                self.blocks.fork(self.rows[i - 1], row, n_alike[i])
            else:
                self.blocks.add(row, 0)
            self.blocks.append(row, n_tokens - n_alike[i])
        self.may_share = any(n_alike)
        shapes = [(n_blocks, part.shape[1], block_size, *part.shape[3:]) for part in parts]
        if [tuple(pool.shape) for pool in self.pools] != shapes:
            self.pools = tuple(_pool(shape, part) for shape, part in zip(shapes, parts, strict=True))
        self._read_tables()
        self._write(0, parts)

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens of each row."""
        self.capacity = capacity
        self._grow(0)

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        """Write tokens [B, H, T, D] after the first `n_held`; a block that others read too is copied first."""
        n_new = key.shape[2]
        copies = [copy for row in self.rows for copy in self._append(row, n_new)]
        is_longer = self.blocks.blocks_of(n_held + n_new) > self.table.shape[1]
        if is_longer and n_new == 1 and not copies:
            self._add_column()
        elif is_longer or copies:
            self._copy(copies)
        self._write(n_held, self.pages.cut(key, value))

    def truncate(self, n_held: int) -> None:
        """Keep the first `n_held` tokens; the blocks of the rejected tail are free at once."""
        for row in self.rows:
            self.blocks.truncate(row, n_held)
        self._read_tables()

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrite one slot [b, h, 1] per row and head with the new token."""
        self._put(slot, self.pages.cut(key, value), self.pools)

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, H, 1, D] in slots [B, H, 1]."""
        at = self._index(slot)
        return self.pages.joined(tuple(pool[at] for pool in self.pools))

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        n_keys = len(self.pools) // 2
        self._put(slot, self.pages.cut(value, value)[n_keys:], self.pools[n_keys:])

    def place_first(self, key: Tensor) -> None:
        """Overwrite the first s keys, where the sinks lie; key [B, H, s, D]."""
        n_keys = len(self.pools) // 2
        slot = torch.arange(key.shape[2], device=key.device)[None, None]
        self._put(slot, self.pages.cut(key, key)[:n_keys], self.pools[:n_keys])

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """The held keys and values [B, H, n_held, D], gathered; not for a decode step."""
        return self.pages.joined(tuple(gathered(pool, self.table)[:, :, :n_held] for pool in self.pools))

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        if isinstance(self.pages, DensePages) and can_split(query, mask, softcap):
            keys, values = self.pools
            return split_paged_attention(query, keys, values, self.table, n_held, scaling=scaling)
        return self.attend_observed(query, n_held, mask, scaling=scaling, softcap=softcap)[0]

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        return folded_attention(self, query, self.pools[0].shape[1], n_held, mask, scaling=scaling, softcap=softcap)

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        """rows [B, H, G, D] with every held key → [B, H, G, n_held]."""
        return self.pages.products(rows, self.pools, self.table)[..., :n_held]

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        """Sum of the held values by weight [B, H, G, n_held] → [B, H, G, D]."""
        n_empty = self.table.shape[1] * self.blocks.block_size - n_held
        return self.pages.weighted(pad(weight, (0, n_empty)), self.pools, self.table)

    def reorder(self, beam_idx: Tensor) -> None:
        """Give row i what row beam_idx[i] holds: it reads the same blocks, and nothing is copied."""
        before, self.rows = self.rows, self._new_sequences(len(beam_idx))
        for row, parent in zip(self.rows, beam_idx.tolist(), strict=True):
            self.blocks.fork(before[parent], row)
        for row in before:
            self.blocks.free(row)
        self.may_share = True
        self._read_tables()

    def swap_out(self, row: int) -> None:
        """Preempt a batch row: its blocks go to the host and serve others. It has to be back before the next step."""
        room, seq_id = HostRoom(), self.rows[row]
        room.device = self.table.device
        blocks = self.blocks.swap_out(seq_id)
        self.saved[seq_id] = tuple(room.copied(pool[blocks]) for pool in self.pools)

    def swap_in(self, row: int) -> None:
        """Raises OutOfBlocks where others have taken its place."""
        seq_id = self.rows[row]
        blocks = self.blocks.swap_in(seq_id)
        for pool, part in zip(self.pools, self.saved.pop(seq_id), strict=True):
            pool[blocks] = part.to(pool.device)
        self._read_tables()

    def check(self) -> None:
        """Raises AssertionError where the books, the table and the pools do not fit each other."""
        self.blocks.check()
        assert all(len(pool) == self.blocks.n_blocks for pool in self.pools), "the pool has other blocks than the books"
        if not self.saved and not self.table.is_meta:
            assert self.table.tolist() == [self.blocks.table(row) for row in self.rows], "the table is not up to date"

    def _new_sequences(self, n: int) -> list[int]:
        self.n_sequences += n
        return list(range(self.n_sequences - n, self.n_sequences))

    def _append(self, row: int, n_tokens: int) -> list[tuple[int, int]]:
        try:
            return self.blocks.append(row, n_tokens)
        except OutOfBlocks:  # rows that were one have parted
            self._grow(len(self.rows))
            return self.blocks.append(row, n_tokens)

    def _grow(self, n_copies: int) -> None:
        """Let the pool hold what is missing until all rows are as long as the capacity, and that many copies."""
        n_missing = [self.blocks.blocks_of(self.capacity) - len(self.blocks.table(row)) for row in self.rows]
        n_more = sum(n_missing) + n_copies - self.blocks.n_free
        if n_more > 0:
            self.blocks.grow(n_more)
            self.pools = tuple(_larger(pool, n_more) for pool in self.pools)

    def _own(self) -> None:
        """Let no row read another's blocks any more, before slots in the middle are written."""
        if self.may_share:
            self._grow(sum(len(self.blocks.table(row)) for row in self.rows) - self.blocks.n_used)
            self._copy([copy for row in self.rows for copy in self.blocks.unshare(row)])
            self.may_share = False

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        """Follow the books: copy blocks, (from, to), and read the tables again."""
        if copies:
            source, target = (list(blocks) for blocks in zip(*copies, strict=True))
            for pool in self.pools:
                pool[target] = pool[source]
        self._read_tables()

    def _read_tables(self) -> None:
        tables = [self.blocks.table(row) for row in self.rows]
        self.table = torch.tensor(tables, dtype=torch.long, device=self.pools[0].device)

    def _add_column(self) -> None:
        """The newest block of each row, number by number: a CUDA graph cannot copy them from the host's memory."""
        column = self.table.new_empty((len(self.rows), 1))
        for place, row in zip(column.unbind(), self.rows, strict=True):
            place.fill_(self.blocks.table(row)[-1])
        self.table = torch.cat([self.table, column], dim=1)

    def _write(self, first: int, parts: Parts) -> None:
        """Tokens of all rows, from position `first` on."""
        position = torch.arange(first, first + parts[0].shape[2], device=self.table.device)
        block, offset = self.table[:, position // self.blocks.block_size], position % self.blocks.block_size
        for pool, part in zip(self.pools, parts, strict=True):
            pool[block, :, offset] = part.transpose(1, 2)

    def _put(self, slot: Tensor, parts: Parts, pools: Parts) -> None:
        self._own()
        at = self._index(slot)
        for pool, part in zip(pools, parts, strict=True):
            pool[at] = part

    def _index(self, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where slots [b, h, k] lie in a pool: block [B, H, k], head [H, 1] and offset [b, h, k]."""
        n_heads, block_size = self.pools[0].shape[1], self.blocks.block_size
        slot = slot.expand(len(self.rows), n_heads, -1)
        block = self.table[:, None].expand(-1, n_heads, -1).gather(2, slot // block_size)
        return block, torch.arange(n_heads, device=slot.device)[:, None], slot % block_size


def _n_alike(parts: Parts, row: int, block_size: int) -> int:
    """Tokens in whole blocks that this row and the one before have in common from the beginning, to the last digit."""
    n_whole = parts[0].shape[2] // block_size * block_size

    def alike(n_tokens: int) -> Tensor:
        """Of each block."""
        same = [(part[row, :, :n_tokens] == part[row - 1, :, :n_tokens]).transpose(0, 1) for part in parts]
        return torch.stack([each.reshape(n_tokens // block_size, -1).all(-1) for each in same]).all(0)

    if not n_whole or parts[0].is_meta or not alike(block_size)[0]:  # mostly the first block tells
        return 0
    return int(alike(n_whole).long().cumprod(0).sum()) * block_size


def _pool(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros: what no token has been written to is read with the weight zero, which would not silence a NaN."""
    if len(shape) < 4:
        return like.new_zeros(shape)
    inner = like.stride(3) > like.stride(2)  # tokens lie side by side
    return like.new_zeros((*shape[:2], shape[3], shape[2])).transpose(2, 3) if inner else like.new_zeros(shape)


def _larger(pool: Tensor, n_blocks: int) -> Tensor:
    larger = _pool((len(pool) + n_blocks, *pool.shape[1:]), pool)
    larger[: len(pool)] = pool
    return larger
