"""Contiguous memory: every sequence reserves one span of slots when it starts and keeps it to the end.

What serving systems did before pages (the baselines of arXiv 2309.06180). They differ in what is known beforehand.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from pipeline.serving.simulate import Sequence
from pipeline.serving.trace import Request

Reserve = Callable[[Request], int]  # slots


def longest(max_len: int) -> Reserve:
    """Nothing is known: as much as any request may have."""
    return lambda request: max_len


def power_of_two(max_len: int) -> Reserve:
    """The output's order of magnitude is known: the next power of two, below twice what is needed."""
    return lambda request: min(max_len, request.n_prompt + 2 ** (request.n_output - 1).bit_length())


def exact(request: Request) -> int:
    """The length of the output is known, as it never is."""
    return request.n_tokens


class Spans:
    """First fit over the holes between the spans that are taken."""

    def __init__(self, n_slots: int):
        self.n_slots = n_slots
        self._taken: list[tuple[int, int]] = []  # (start, end), in order

    def take(self, n: int) -> tuple[int, int] | None:
        """(start, end), or None where no hole is large enough, however much is free in all."""
        start = 0
        for i, (taken_start, taken_end) in enumerate([*self._taken, (self.n_slots, self.n_slots)]):
            if taken_start - start >= n:
                self._taken.insert(i, (start, start + n))
                return start, start + n
            start = taken_end
        return None

    def give_back(self, span: tuple[int, int]) -> None:
        at = bisect.bisect_left(self._taken, span)
        assert self._taken[at] == span, "a span that is not taken"
        del self._taken[at]


class Contiguous:
    """Memory for sequences that each reserve a span."""

    def __init__(self, n_slots: int, reserve: Reserve):
        self.n_slots, self._reserve = n_slots, reserve
        self.n_held = 0
        self.n_allocated = 0
        self._spans = Spans(n_slots)
        self._span_of: dict[int, tuple[int, int]] = {}

    def n_needed(self, request: Request) -> int:
        return self._reserve(request)

    def admit(self, sequence: Sequence, *, alone: bool) -> bool:
        n = self._reserve(sequence.request)
        if n > self.n_slots - self.n_allocated:
            return False
        span = self._spans.take(n)
        if span is None:
            return False
        self._span_of[sequence.request.id] = span
        self.n_allocated += n
        self.n_held += sequence.n_tokens
        return True

    def grow(self, sequence: Sequence) -> bool:
        self.n_held += 1
        return True

    def release(self, sequence: Sequence) -> None:
        span = self._span_of.pop(sequence.request.id)
        self._spans.give_back(span)
        self.n_allocated -= span[1] - span[0]
        self.n_held -= sequence.n_tokens

    def preempt(self, sequence: Sequence) -> bool:
        raise AssertionError("what is reserved never runs out")

    def n_unusable(self, sequence: Sequence) -> int:
        """Slots that would do for a sequence that was not admitted, if they lay together."""
        free = self.n_slots - self.n_allocated
        return free if free >= self._reserve(sequence.request) else 0
