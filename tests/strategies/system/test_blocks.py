"""Blocks are never lost, freed twice or written by two; the worked cases come out as they were worked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from strategies.system.blocks import BlockManager, OutOfBlocks

N_BLOCKS, BLOCK_SIZE = 12, 4


class Serving(RuleBasedStateMachine):
    """Sequences come, grow, part and go; numbers are written through the tables, and into lists beside them."""

    sequences = Bundle("sequences")
    swapped = Bundle("swapped")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(N_BLOCKS, BLOCK_SIZE)
        self.pool = torch.full((N_BLOCKS, BLOCK_SIZE), -1)
        self.contiguous: dict[int, list[int]] = {}
        self.saved: dict[int, torch.Tensor] = {}
        self.n_written = self.n_made = 0

    def write(self, seq_id: int, n_tokens: int) -> None:
        """Numbers that no other token has, at the end of the sequence."""
        first = self.blocks.n_tokens(seq_id) - n_tokens
        table = self.blocks.table(seq_id)
        for position in range(first, first + n_tokens):
            self.n_written += 1
            self.pool[table[position // BLOCK_SIZE], position % BLOCK_SIZE] = self.n_written
            self.contiguous[seq_id].append(self.n_written)

    def new_id(self) -> int:
        self.n_made += 1
        return self.n_made

    @rule(target=sequences, n_tokens=st.integers(0, 4 * BLOCK_SIZE))
    def add(self, n_tokens: int) -> Any:
        seq_id = self.new_id()
        if self.blocks.blocks_of(n_tokens) > self.blocks.n_free:
            with pytest.raises(OutOfBlocks):
                self.blocks.add(seq_id, n_tokens)
            return multiple()
        self.blocks.add(seq_id, n_tokens)
        self.contiguous[seq_id] = []
        self.write(seq_id, n_tokens)
        return seq_id

    @rule(seq_id=sequences, n_tokens=st.integers(0, 2 * BLOCK_SIZE))
    def append(self, seq_id: int, n_tokens: int) -> None:
        try:
            copies = self.blocks.append(seq_id, n_tokens)
        except OutOfBlocks:
            assert self.blocks.n_free <= self.blocks.blocks_of(n_tokens)  # one may go into a copy of the last block
            return
        for source, target in copies:
            self.pool[target] = self.pool[source]
        self.write(seq_id, n_tokens)

    @rule(target=sequences, parent=sequences, share=st.none() | st.floats(0, 1))
    def fork(self, parent: int, share: float | None) -> int:
        child = self.new_id()
        n_tokens = None if share is None else int(share * self.blocks.n_tokens(parent))
        n_used = self.blocks.n_used
        self.blocks.fork(parent, child, n_tokens)
        assert self.blocks.n_used == n_used
        if n_tokens is not None:
            assert 0 <= n_tokens - self.blocks.n_tokens(child) < BLOCK_SIZE
        self.contiguous[child] = self.contiguous[parent][: self.blocks.n_tokens(child)]
        return child

    @rule(seq_id=sequences, share=st.floats(0, 1))
    def truncate(self, seq_id: int, share: float) -> None:
        n_tokens = int(share * self.blocks.n_tokens(seq_id))
        self.blocks.truncate(seq_id, n_tokens)
        del self.contiguous[seq_id][n_tokens:]

    @rule(seq_id=sequences)
    def unshare(self, seq_id: int) -> None:
        try:
            copies = self.blocks.unshare(seq_id)
        except OutOfBlocks:
            return
        for source, target in copies:
            self.pool[target] = self.pool[source]
        others = {block for other in self.contiguous if other != seq_id and other not in self.saved
                  for block in self.blocks.table(other)}  # fmt: skip
        assert not others & set(self.blocks.table(seq_id))

    @rule(seq_id=consumes(sequences))
    def free(self, seq_id: int) -> None:
        self.blocks.free(seq_id)
        del self.contiguous[seq_id]

    @rule(target=swapped, seq_id=consumes(sequences))
    def swap_out(self, seq_id: int) -> int:
        self.saved[seq_id] = self.pool[self.blocks.swap_out(seq_id)].clone()
        with pytest.raises(ValueError, match=r"swapped out; valid: after swap_in"):
            self.blocks.table(seq_id)
        return seq_id

    @rule(target=sequences, seq_id=consumes(swapped))
    def swap_in(self, seq_id: int) -> Any:
        try:
            blocks = self.blocks.swap_in(seq_id)
        except OutOfBlocks:
            self.blocks.free(seq_id)
            del self.contiguous[seq_id], self.saved[seq_id]
            return multiple()
        self.pool[blocks] = self.saved.pop(seq_id)
        return seq_id

    @rule(n_blocks=st.integers(0, 2))
    def grow(self, n_blocks: int) -> None:
        self.blocks.grow(n_blocks)
        self.pool = torch.cat([self.pool, torch.full((n_blocks, BLOCK_SIZE), -1)])

    @invariant()
    def contents_are_those_of_a_contiguous_cache(self) -> None:
        for seq_id in self.contiguous.keys() - self.saved.keys():
            held = self.pool[self.blocks.table(seq_id)].flatten()
            assert held[: self.blocks.n_tokens(seq_id)].tolist() == self.contiguous[seq_id]

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        self.blocks.check()

    def teardown(self) -> None:
        for seq_id in self.contiguous:
            self.blocks.free(seq_id)
        self.blocks.check()
        assert self.blocks.n_used == 0


Serving.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestServing = Serving.TestCase


def filled(lengths: list[int], block_size: int) -> BlockManager:
    blocks = BlockManager(100, block_size)
    for seq_id, n_tokens in enumerate(lengths):
        blocks.add(seq_id, n_tokens)
    blocks.check()
    return blocks


@pytest.mark.parametrize(
    ("lengths", "longest", "block_size", "n_blocks", "contiguous_percent", "paged_percent"),
    [([23, 67, 45, 12], 100, 16, 11, 36.75, 83.5), ([10, 7, 2], 10, 4, 6, 63.3, 79.2)],
)
def test_the_worked_shares_of_used_room(
    lengths: list[int],
    longest: int,
    block_size: int,
    n_blocks: int,
    contiguous_percent: float,
    paged_percent: float,
) -> None:
    blocks = filled(lengths, block_size)
    assert blocks.n_used == n_blocks
    assert 100 * sum(lengths) / (len(lengths) * longest) == pytest.approx(contiguous_percent, abs=0.05)
    assert 100 * sum(lengths) / (blocks.n_used * block_size) == pytest.approx(paged_percent, abs=0.05)


def test_a_sequence_takes_a_block_when_it_needs_one() -> None:
    blocks = filled([0], 16)
    taken = []
    for n_tokens in (0, 5, 12, 23, 40):
        assert blocks.append(0, n_tokens - blocks.n_tokens(0)) == []
        taken.append(blocks.n_used)
    assert taken == [0, 1, 1, 2, 3]


def test_three_beams_on_a_prefix_of_three_blocks_hold_six() -> None:
    blocks = filled([48], 16)
    for beam in (1, 2):
        blocks.fork(0, beam)
    assert blocks.n_used == 3
    for beam in range(3):
        assert blocks.append(beam) == []  # the prefix fills its blocks, so nothing is copied
    assert (blocks.n_used, sum(len(blocks.table(beam)) for beam in range(3))) == (6, 12)
    blocks.check()


def test_the_last_reader_of_a_block_writes_it_in_place() -> None:
    blocks = filled([5], 4)
    blocks.fork(0, 1)
    blocks.fork(0, 2)
    assert blocks.append(0) == [(1, 2)]
    assert blocks.append(1) == [(1, 3)]
    assert blocks.append(2) == []
    assert [blocks.table(beam) for beam in range(3)] == [[0, 2], [0, 3], [0, 1]]


def test_freed_blocks_serve_any_sequence_at_once() -> None:
    blocks = BlockManager(4, 16)
    blocks.add(0, 30)
    blocks.add(1, 30)
    with pytest.raises(OutOfBlocks, match=r"n_blocks=4: 1 of 16 tokens asked for, 0 are free; valid: "):
        blocks.append(0, 3)
    assert blocks.n_tokens(0) == 30
    blocks.free(1)
    blocks.add(2, 20)
    assert blocks.table(2) == [2, 3]


def test_preemption_by_recompute_is_free_and_add() -> None:
    blocks = filled([20, 20], 16)
    blocks.free(0)
    blocks.append(1, 13)
    blocks.add(0, 21)
    assert (blocks.table(1), blocks.table(0)) == ([2, 3, 0], [1, 4])
    blocks.check()


@pytest.mark.parametrize(
    "wrong", [lambda b: b._free.pop(), lambda b: b._free.append(0), lambda b: b._sequences[1].table.append(0)]
)
def test_the_check_finds_a_leak_a_double_free_and_a_reader_that_nobody_counted(wrong: Any) -> None:
    blocks = filled([20, 20], 16)
    wrong(blocks)
    with pytest.raises(AssertionError):
        blocks.check()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: BlockManager(4, 0), r"block_size=0: .*; valid: 1 or more"),
        (lambda b: BlockManager(-1, 4), r"n_blocks=-1: .*; valid: 0 or more"),
        (lambda b: b.add(0, 3), r"seq_id=0: it is there already; valid: "),
        (lambda b: b.add(1, -3), r"n_tokens=-3: .*; valid: 0 or more"),
        (lambda b: b.append(7), r"seq_id=7: no such sequence; valid: "),
        (lambda b: b.fork(0, 1, 21), r"n_tokens=21: .*; valid: 0 to 20"),
        (lambda b: b.truncate(0, 21), r"n_tokens=21: .*; valid: 0 to 20"),
        (lambda b: b.swap_in(0), r"seq_id=0: it was not swapped out; valid: "),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(call: Any, message: str) -> None:
    blocks = filled([20], 16)
    with pytest.raises(ValueError, match=message):
        call(blocks)
    assert (blocks.table(0), blocks.n_tokens(0), blocks.n_used) == ([0, 1], 20, 2)
    blocks.check()
