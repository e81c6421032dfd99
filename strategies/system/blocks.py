"""Blocks of a pool, assigned to sequences through tables: the bookkeeping of PagedAttention (arXiv 2309.06180).

A sequence takes blocks as it grows, so that at most its last one is partly empty. Sequences with a common past share
blocks by reference; one that writes into a block others read gets a copy first. Nothing here holds a tensor: what has
to be copied or moved is told to whoever does.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field


class OutOfBlocks(RuntimeError):
    """The pool has too few free blocks; nothing was changed, and preempting a sequence would help."""


@dataclass
class _Sequence:
    n_tokens: int = 0
    table: list[int] = field(default_factory=list)
    swapped: bool = False


class BlockManager:
    """A pool of `n_blocks` blocks, `block_size` tokens each. Blocks are given out from the lowest number on."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: a block holds tokens; valid: 1 or more")
        if n_blocks < 0:
            raise ValueError(f"n_blocks={n_blocks}: there is no such pool; valid: 0 or more")
        self.n_blocks, self.block_size = n_blocks, block_size
        self._free = list(range(n_blocks))  # a heap
        self._n_references = [0] * n_blocks
        self._sequences: dict[int, _Sequence] = {}

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_used(self) -> int:
        return self.n_blocks - self.n_free

    @property
    def n_shared(self) -> int:
        """Blocks that more than one sequence reads."""
        return sum(count > 1 for count in self._n_references)

    def blocks_of(self, n_tokens: int) -> int:
        """Blocks that so many tokens fill, the last one perhaps in part."""
        return -(-n_tokens // self.block_size)

    def table(self, seq_id: int) -> list[int]:
        """The blocks of a sequence, in the order of its tokens. Raises ValueError while it is swapped out."""
        return list(self._resident(seq_id).table)

    def n_tokens(self, seq_id: int) -> int:
        return self._known(seq_id).n_tokens

    def add(self, seq_id: int, n_tokens: int) -> None:
        """A new sequence. Raises OutOfBlocks, and ValueError for one that is there already."""
        self._require_new(seq_id)
        self._require_count("n_tokens", n_tokens)
        self._sequences[seq_id] = _Sequence(n_tokens, self._take(self.blocks_of(n_tokens)))

    def append(self, seq_id: int, n_tokens: int = 1) -> list[tuple[int, int]]:
        """Room for more tokens. Returns the blocks to copy, as (from, to), before they are written; raises OutOfBlocks.

        Only the last block is ever written again, so there is one copy at most.
        """
        self._require_count("n_tokens", n_tokens)
        sequence = self._resident(seq_id)
        writes_last = n_tokens > 0 and sequence.n_tokens % self.block_size > 0
        parts = writes_last and self._n_references[sequence.table[-1]] > 1
        n_more = self.blocks_of(sequence.n_tokens + n_tokens) - len(sequence.table)
        taken = self._take(n_more + parts)
        copies = [self._replace(sequence, len(sequence.table) - 1, taken.pop(0))] if parts else []
        sequence.n_tokens += n_tokens
        sequence.table += taken
        return copies

    def fork(self, parent: int, child: int, n_tokens: int | None = None) -> None:
        """`child` reads what `parent` holds, or only the blocks that the parent's first `n_tokens` fill entirely."""
        self._require_new(child)
        sequence = self._resident(parent)
        n_shared = sequence.n_tokens
        if n_tokens is not None:
            if not 0 <= n_tokens <= sequence.n_tokens:
                raise ValueError(f"n_tokens={n_tokens}: sequence {parent} has no such prefix; "
                                 f"valid: 0 to {sequence.n_tokens}")  # fmt: skip
            n_shared = n_tokens // self.block_size * self.block_size
        table = sequence.table[: self.blocks_of(n_shared)]
        for block in table:
            self._n_references[block] += 1
        self._sequences[child] = _Sequence(n_shared, table)

    def truncate(self, seq_id: int, n_tokens: int) -> None:
        """Keep the first `n_tokens`, as after a rejected draft; the blocks of the tail are free at once."""
        sequence = self._resident(seq_id)
        if not 0 <= n_tokens <= sequence.n_tokens:
            raise ValueError(f"n_tokens={n_tokens}: sequence {seq_id} has {sequence.n_tokens}; "
                             f"valid: 0 to {sequence.n_tokens}")  # fmt: skip
        n_kept = self.blocks_of(n_tokens)
        self._give_back(sequence.table[n_kept:])
        sequence.n_tokens, sequence.table = n_tokens, sequence.table[:n_kept]

    def free(self, seq_id: int) -> None:
        """The sequence has ended, or will be recomputed."""
        self._give_back(self._known(seq_id).table)
        del self._sequences[seq_id]

    def unshare(self, seq_id: int) -> list[tuple[int, int]]:
        """Blocks of its own for the whole sequence. Returns the copies, as (from, to); raises OutOfBlocks."""
        sequence = self._resident(seq_id)
        shared = [i for i, block in enumerate(sequence.table) if self._n_references[block] > 1]
        return [self._replace(sequence, i, block) for i, block in zip(shared, self._take(len(shared)), strict=True)]

    def swap_out(self, seq_id: int) -> list[int]:
        """Preempt a sequence. Returns the blocks whose contents have to be saved before anything else is written."""
        sequence = self._resident(seq_id)
        table, sequence.table, sequence.swapped = sequence.table, [], True
        self._give_back(table)
        return table

    def swap_in(self, seq_id: int) -> list[int]:
        """Returns the new blocks for what was saved, in its order and shared with nobody. Raises OutOfBlocks."""
        sequence = self._known(seq_id)
        if not sequence.swapped:
            raise ValueError(f"seq_id={seq_id}: it was not swapped out; valid: a sequence that was")
        sequence.table = self._take(self.blocks_of(sequence.n_tokens))
        sequence.swapped = False
        return list(sequence.table)

    def grow(self, n_blocks: int) -> None:
        """Add free blocks after the last one."""
        self._require_count("n_blocks", n_blocks)
        for block in range(self.n_blocks, self.n_blocks + n_blocks):
            heapq.heappush(self._free, block)
        self._n_references += [0] * n_blocks
        self.n_blocks += n_blocks

    def check(self) -> None:
        """Raises AssertionError for a block that has leaked, was freed twice, or has a reader who is not counted."""
        readers = Counter(block for sequence in self._sequences.values() for block in sequence.table)
        assert [readers[block] for block in range(self.n_blocks)] == self._n_references, "readers are miscounted"
        assert sorted(self._free) == [b for b in range(self.n_blocks) if not readers[b]], "free or used, never both"
        for seq_id, sequence in self._sequences.items():
            n_blocks = 0 if sequence.swapped else self.blocks_of(sequence.n_tokens)
            assert len(sequence.table) == n_blocks, f"sequence {seq_id}: its table does not fit its length"
            assert len(set(sequence.table)) == n_blocks, f"sequence {seq_id}: two places in one block"

    def _take(self, n_blocks: int) -> list[int]:
        if n_blocks > len(self._free):
            raise OutOfBlocks(f"n_blocks={self.n_blocks}: {n_blocks} of {self.block_size} tokens asked for, "
                              f"{self.n_free} are free; valid: a larger pool, or fewer sequences at once")  # fmt: skip
        taken = [heapq.heappop(self._free) for _ in range(n_blocks)]
        for block in taken:
            self._n_references[block] = 1
        return taken

    def _give_back(self, blocks: list[int]) -> None:
        for block in blocks:
            self._n_references[block] -= 1
            if not self._n_references[block]:
                heapq.heappush(self._free, block)

    def _replace(self, sequence: _Sequence, at: int, block: int) -> tuple[int, int]:
        """Let the sequence read `block` there. Returns (from, to)."""
        before, sequence.table[at] = sequence.table[at], block
        self._give_back([before])
        return before, block

    def _known(self, seq_id: int) -> _Sequence:
        if seq_id not in self._sequences:
            raise ValueError(f"seq_id={seq_id}: no such sequence; valid: one that was added or forked")
        return self._sequences[seq_id]

    def _resident(self, seq_id: int) -> _Sequence:
        sequence = self._known(seq_id)
        if sequence.swapped:
            raise ValueError(f"seq_id={seq_id}: it is swapped out; valid: after swap_in")
        return sequence

    def _require_new(self, seq_id: int) -> None:
        if seq_id in self._sequences:
            raise ValueError(f"seq_id={seq_id}: it is there already; valid: another number, or free it first")

    @staticmethod
    def _require_count(name: str, count: int) -> None:
        if count < 0:
            raise ValueError(f"{name}={count}: nothing can be less than none; valid: 0 or more")
