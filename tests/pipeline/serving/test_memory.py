"""Spans and blocks under a scheduler: what is counted is what lies there."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pipeline.serving import contiguous
from pipeline.serving.contiguous import Contiguous, Spans
from pipeline.serving.paged import Paged
from pipeline.serving.results import Size
from pipeline.serving.simulate import Memory, Scheduler, Sequence, require_room
from pipeline.serving.trace import Request
from tests.pipeline.serving.plans import FULL, blocks, requests


def request(n_prompt: int, n_output: int, id: int = 0, n_prefix: int = 0) -> Request:
    return Request(id, 0, n_prompt, n_output, 0 if n_prefix else None, n_prefix)


def test_spans_never_overlap_and_the_lowest_hole_that_fits_is_taken() -> None:
    draw, spans, taken = random.Random(0), Spans(100), []
    for _ in range(500):
        if taken and draw.random() < 0.5:
            spans.give_back(taken.pop(draw.randrange(len(taken))))
            continue
        n = draw.randint(1, 30)
        free = set(range(100)) - {slot for start, end in taken for slot in range(start, end)}
        fitting = [start for start in range(101 - n) if free.issuperset(range(start, start + n))]
        span = spans.take(n)
        assert span == ((fitting[0], fitting[0] + n) if fitting else None)
        taken += [span] if span else []


def test_what_is_free_in_pieces_is_unusable_only_where_it_would_do_together() -> None:
    memory = Contiguous(30, contiguous.exact)
    three = [Sequence(request(5, 5, id)) for id in range(3)]
    assert all(memory.admit(sequence, alone=False) for sequence in three)
    memory.release(three[0])
    memory.release(three[2])
    long, longer = Sequence(request(10, 10, 3)), Sequence(request(10, 11, 4))
    assert not memory.admit(long, alone=False) and memory.n_unusable(long) == 20
    assert not memory.admit(longer, alone=False) and memory.n_unusable(longer) == 0


def test_reservations() -> None:
    for n_output, power in ((1, 1), (2, 2), (5, 8), (8, 8), (9, 16)):
        assert contiguous.power_of_two(100)(request(20, n_output)) == 20 + power
    assert contiguous.power_of_two(25)(request(20, 5)) == 25
    assert contiguous.longest(100)(request(20, 5)) == 100
    assert contiguous.exact(request(20, 5)) == 25


def test_admission_leaves_the_watermark_unless_nobody_runs() -> None:
    def paged() -> Paged:
        return Paged(blocks(64), FULL, watermark=2)

    assert not paged().admit(Sequence(request(33, 1)), alone=False)
    assert paged().admit(Sequence(request(33, 1)), alone=True)
    assert paged().admit(Sequence(request(32, 1)), alone=False)


def test_a_common_prompt_is_held_once_as_long_as_anybody_reads_it() -> None:
    memory = Paged(blocks(1600), FULL, watermark=0, shares=True)
    first, second, other = (Sequence(request(50, 9, id, n_prefix)) for id, n_prefix in ((0, 40), (1, 40), (2, 0)))
    for sequence, n_blocks in ((first, 4), (second, 4 + 2), (other, 4 + 2 + 4)):
        assert memory.admit(sequence, alone=False)
        assert memory.blocks.n_used == n_blocks
    assert memory.blocks.table(0)[:2] == memory.blocks.table(1)[:2]
    assert memory.n_held == 32 + 18 + 18 + 50
    memory.release(first)
    memory.blocks.check()
    assert memory.blocks.n_used == 4 + 4 and memory.n_held == 50 + 50
    memory.release(second)
    assert memory.blocks.n_used == 4 and memory.n_held == 50


@pytest.mark.parametrize("size", [FULL, Size(slot_bytes=1, fixed=3, keeps=0.25, grows=False)])
def test_what_a_technique_keeps_is_what_is_held(size: Size) -> None:
    memory, sequence = Paged(blocks(160), size, watermark=0), Sequence(request(40, 9))
    assert memory.admit(sequence, alone=True)
    for n_generated in range(1, 10):
        assert memory.grow(sequence)
        sequence.n_generated = n_generated
        assert memory.n_held == size.n_slots(40, n_generated) == memory.blocks.n_tokens(0)


@pytest.mark.parametrize("options", [{}, {"swaps": True}, {"shares": True}], ids=str)
@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
def test_tokens_that_are_counted_lie_in_the_blocks(options: dict[str, bool], block_size: int) -> None:
    """Against the tables, block by block, in every step of a pool that is too small for all."""
    memory = Paged(blocks(600, block_size), FULL, watermark=0, **options)
    scheduler, preempted = Scheduler(requests(), memory), 0
    for step in range(160):
        scheduler.step(step)
        memory.blocks.check()
        filled: Counter[int] = Counter()
        for sequence in scheduler.running:
            n_tokens = memory.blocks.n_tokens(sequence.request.id)
            assert n_tokens == sequence.n_tokens
            for i, block in enumerate(memory.blocks.table(sequence.request.id)):
                filled[block] = max(filled[block], min(block_size, n_tokens - i * block_size))
        assert memory.n_held == filled.total()
        assert memory.n_allocated == len(filled) * block_size
        preempted += any(sequence.n_generated for sequence in scheduler.waiting)
    assert preempted


def test_a_request_larger_than_memory_is_refused() -> None:
    wanted = [request(10, 5), request(90, 11, id=7)]
    memories: list[Memory] = [Contiguous(100, contiguous.exact), Paged(blocks(111), FULL, watermark=0)]
    for memory, n_needed in zip(memories, (101, 112), strict=True):
        require_room(wanted[:1], memory)
        with pytest.raises(
            ValueError, match=rf"request=7: its 101 tokens take {n_needed} slots, and memory has \d+; v"
        ):
            require_room(wanted, memory)
