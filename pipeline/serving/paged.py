"""Paged memory: the project's block allocator, as a scheduler uses it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.serving.results import Size
from pipeline.serving.simulate import Sequence
from pipeline.serving.trace import Request


class Paged:
    """Sequences take blocks as they grow.

    `blocks`: an empty strategies.system.blocks.BlockManager. `watermark`: blocks that admission leaves to those that
    run. `shares`: the blocks that a common prompt fills are held once, as long as anybody reads them. `swaps`: what is
    preempted goes to the host and comes back; else it is recomputed.
    """

    def __init__(self, blocks: Any, size: Size, *, watermark: int, shares: bool = False, swaps: bool = False):
        self.blocks, self._size, self._watermark = blocks, size, watermark
        assert not (shares and swaps), "what is swapped in is shared with nobody"
        self._shares, self._swaps = shares, swaps
        self.n_held = 0
        self._readers: Counter[int | None] = Counter()  # of each common prompt

    @property
    def n_slots(self) -> int:
        return int(self.blocks.n_blocks * self.blocks.block_size)

    @property
    def n_allocated(self) -> int:
        return int(self.blocks.n_used * self.blocks.block_size)

    def n_needed(self, request: Request) -> int:
        """Slots of the blocks that it fills alone, at its end."""
        n_slots = self._size.n_slots(request.n_prompt, request.n_output)
        return int(self.blocks.blocks_of(n_slots) * self.blocks.block_size)

    def admit(self, sequence: Sequence, *, alone: bool) -> bool:
        """Whether there was room for it, and the watermark beside it unless it would run `alone`."""
        request, n_own = sequence.request, self._n_own(sequence)
        n_common = 0 if self._n_reading(request) else self._n_common(request)
        n_blocks = self.blocks.blocks_of(n_own) + self.blocks.blocks_of(n_common)
        if self.blocks.n_free - n_blocks < (0 if alone else self._watermark):
            return False
        if sequence.swapped:
            self.blocks.swap_in(request.id)
        else:
            self._enter(request, n_common, n_own)
        self.n_held += n_common + n_own
        return True

    def grow(self, sequence: Sequence) -> bool:
        """One token more. False where the pool has run out."""
        if self._size.grows:
            try:
                self.blocks.append(sequence.request.id)
            except RuntimeError:  # OutOfBlocks, whose class only conf/ reaches
                return False
            self.n_held += 1
        return True

    def release(self, sequence: Sequence) -> None:
        """Of a sequence that runs, or is swapped out."""
        request = sequence.request
        self.blocks.free(request.id)
        if sequence.swapped:
            return
        self.n_held -= self._n_own(sequence)
        if n_common := self._n_common(request):
            self._readers[request.prefix] -= 1
            if not self._n_reading(request):
                self.blocks.free(_common_id(request))
                self.n_held -= n_common

    def preempt(self, sequence: Sequence) -> bool:
        """Whether it was swapped out; else it has to be computed again."""
        if not self._swaps:
            self.release(sequence)
            return False
        self.n_held -= self._n_own(sequence)
        self.blocks.swap_out(sequence.request.id)
        return True

    def n_unusable(self, sequence: Sequence) -> int:
        """None: a block serves any sequence."""
        return 0

    def _enter(self, request: Request, n_common: int, n_own: int) -> None:
        """`n_common`: tokens that it is the first to read."""
        if not self._n_common(request):
            self.blocks.add(request.id, n_own)
            return
        if n_common:
            self.blocks.add(_common_id(request), n_common)
        self._readers[request.prefix] += 1
        self.blocks.fork(_common_id(request), request.id)
        self.blocks.append(request.id, n_own)

    def _n_own(self, sequence: Sequence) -> int:
        n_slots = self._size.n_slots(sequence.request.n_prompt, sequence.n_generated)
        return n_slots - self._n_common(sequence.request)

    def _n_common(self, request: Request) -> int:
        """Tokens in the blocks that a common prompt fills; the rest of it is everybody's own."""
        return int(request.n_prefix // self.blocks.block_size * self.blocks.block_size) if self._shares else 0

    def _n_reading(self, request: Request) -> int:
        return self._readers[request.prefix]


def _common_id(request: Request) -> int:
    """Of the sequence that holds a common prompt; requests count from 0."""
    assert request.prefix is not None
    return -1 - request.prefix
