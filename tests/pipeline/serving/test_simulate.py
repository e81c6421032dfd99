"""Laws of a simulation: nothing is lost, nothing overflows, and more memory or less waste serves more."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from pipeline.serving import contiguous
from pipeline.serving.contiguous import Contiguous
from pipeline.serving.paged import Paged
from pipeline.serving.results import Served, Size
from pipeline.serving.simulate import Memory, Scheduler, simulate
from pipeline.serving.trace import Request
from tests.pipeline.serving.plans import FULL, blocks, requests

N_SLOTS, MAX_LEN, N_STEPS = 1200, 256, 160
REQUESTS = requests()
MEMORIES: dict[str, Callable[[int], Memory]] = {
    "longest": lambda n: Contiguous(n, contiguous.longest(MAX_LEN)),
    "power_of_two": lambda n: Contiguous(n, contiguous.power_of_two(MAX_LEN)),
    "exact": lambda n: Contiguous(n, contiguous.exact),
    "paged": lambda n: Paged(blocks(n), FULL, watermark=0),
    "swapping": lambda n: Paged(blocks(n), FULL, watermark=0, swaps=True),
    "sharing": lambda n: Paged(blocks(n), FULL, watermark=1, shares=True),
}
each_memory = pytest.mark.parametrize("name", MEMORIES)


def served(name: str, n_slots: int = N_SLOTS) -> Served:
    return simulate(REQUESTS, MEMORIES[name](n_slots), N_STEPS)


class Watched(Scheduler):
    """Counts tokens as they are generated."""

    n_generated = 0

    def _grow(self) -> None:
        before = {id(s): s.n_generated for s in (*self.running, *self.waiting)}
        super()._grow()
        self.n_generated += sum(s.n_generated - before[id(s)] for s in (*self.running, *self.waiting))


@each_memory
def test_every_request_is_waiting_running_or_finished_and_memory_is_empty_at_the_end(name: str) -> None:
    memory = MEMORIES[name](N_SLOTS)
    scheduler = Watched(REQUESTS, memory)
    for step in range(N_STEPS):
        scheduler.step(step)
        parts = (scheduler.arriving, scheduler.waiting, scheduler.running, scheduler.finished)
        assert sorted(s.request.id for part in parts for s in part) == [request.id for request in REQUESTS]
        assert 0 <= memory.n_held <= memory.n_allocated <= memory.n_slots
    assert all(s.n_generated == s.request.n_output for s in scheduler.finished)
    generated = sum(s.n_generated for part in (scheduler.waiting, scheduler.running, scheduler.finished) for s in part)
    assert scheduler.n_generated == generated > 0
    scheduler.let_go()
    assert memory.n_held == memory.n_allocated == 0
    if isinstance(memory, Paged):
        memory.blocks.check()
        assert memory.blocks.n_free == memory.blocks.n_blocks


@each_memory
def test_the_counts_of_a_simulation_agree(name: str) -> None:
    found = served(name)
    assert found.n_arrived == found.n_finished + found.n_running + found.n_waiting == len(REQUESTS)
    assert 0 < found.utilisation <= 1
    assert found.held + found.unfilled + found.unusable <= 1 + 1e-12
    assert 0 < found.concurrent_mean <= found.concurrent_peak
    # A running sequence gains one token per step: the mean number of them bounds what can finish.
    assert 0 < found.finished_tokens_per_step <= found.concurrent_mean
    assert found == served(name)


def test_blocks_serve_more_than_reservations_at_equal_memory() -> None:
    longest, paged, sharing = (served(name) for name in ("longest", "paged", "sharing"))
    assert paged.concurrent_mean > served("exact").concurrent_mean > longest.concurrent_mean
    assert sharing.concurrent_mean > paged.concurrent_mean
    assert sharing.finished_tokens_per_step > paged.finished_tokens_per_step > longest.finished_tokens_per_step
    assert longest.n_preemptions == 0 < paged.n_preemptions


def test_blocks_are_never_in_pieces_and_blocks_of_one_are_always_full() -> None:
    assert served("paged").unusable == served("sharing").unusable == 0 < served("exact").unusable
    ones = simulate(REQUESTS, Paged(blocks(N_SLOTS, 1), FULL, watermark=0), N_STEPS)
    assert ones.unfilled == 0 and ones.utilisation == 1


def test_smaller_blocks_are_fuller() -> None:
    found = [simulate(REQUESTS, Paged(blocks(N_SLOTS, n), FULL, watermark=0), N_STEPS) for n in (1, 4, 16, 64)]
    assert all(small.utilisation > large.utilisation for small, large in pairwise(found))


@each_memory
def test_more_memory_never_serves_less(name: str) -> None:
    goodput = [served(name, n).finished_tokens_per_step for n in (512, 1024, 2048, 4096, 16384)]
    assert all(more >= less for less, more in pairwise(goodput)) and goodput[-1] > goodput[0]


def test_in_enough_memory_nobody_waits_and_all_policies_are_one() -> None:
    found = [served(name, 10**6) for name in MEMORIES]
    assert {one.waiting_steps for one in found} == {0}
    assert len({(one.n_finished, one.finished_tokens_per_step, one.concurrent_mean) for one in found}) == 1


def test_recomputing_feeds_tokens_again_and_swapping_does_not() -> None:
    recomputed, swapped = served("paged"), served("swapping")
    assert recomputed.n_preemptions > 0 < swapped.n_preemptions
    assert recomputed.n_recomputed > recomputed.n_preemptions and swapped.n_recomputed == 0


def test_the_newest_is_preempted_and_returns_first() -> None:
    """Three prompts fit and three answers do not: the third gives way at once, the second when the first needs it."""
    three = [Request(i, 0, 16, 40, None, 0) for i in range(3)]
    scheduler = Scheduler(three, Paged(blocks(64), FULL, watermark=0))
    scheduler.step(0)
    assert [s.request.id for s in scheduler.running] == [0, 1] and scheduler.waiting[0].request.id == 2
    for step in range(1, 17):
        scheduler.step(step)
    assert [s.request.id for s in scheduler.running] == [0]
    assert [(s.request.id, s.n_generated) for s in scheduler.waiting] == [(1, 16), (2, 0)]


@pytest.mark.parametrize("grows", [True, False])
def test_keeping_less_serves_more(grows: bool) -> None:
    size = Size(slot_bytes=1, fixed=0, keeps=0.25, grows=grows)
    less = simulate(REQUESTS, Paged(blocks(512), size, watermark=0), N_STEPS)
    assert less.finished_tokens_per_step > served("paged", 512).finished_tokens_per_step
    assert grows or less.n_preemptions == 0
