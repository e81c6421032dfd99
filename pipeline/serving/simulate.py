"""Continuous batching in discrete steps: who is admitted, grows, is preempted and finishes, and what memory holds.

First come, first served. In a step, waiting requests are admitted while memory allows, then every running sequence
gains one token. Where the pool runs out, the newest sequence is preempted and waits before all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.serving.results import Served
from pipeline.serving.trace import Request


@dataclass(slots=True, eq=False)
class Sequence:
    request: Request
    n_generated: int = 0
    admitted: int | None = None  # the step, the first time
    swapped: bool = False  # what it held lies on the host

    @property
    def n_tokens(self) -> int:
        return self.request.n_prompt + self.n_generated

    @property
    def finished(self) -> bool:
        return self.n_generated >= self.request.n_output


class Memory(Protocol):
    """Slots for tokens. `n_held`: tokens, those that are shared once; `n_allocated`: slots nobody else can have."""

    n_held: int

    @property
    def n_slots(self) -> int: ...
    @property
    def n_allocated(self) -> int: ...
    def n_needed(self, request: Request) -> int: ...
    def admit(self, sequence: Sequence, *, alone: bool) -> bool: ...
    def grow(self, sequence: Sequence) -> bool: ...
    def release(self, sequence: Sequence) -> None: ...
    def preempt(self, sequence: Sequence) -> bool: ...
    def n_unusable(self, sequence: Sequence) -> int: ...


def simulate(requests: Iterable[Request], memory: Memory, n_steps: int) -> Served:
    """Of `memory`, which is empty and will be, and has room for any one of the `requests`, in the order of arrival.

    What has not finished after `n_steps` is let go.
    """
    scheduler = Scheduler(requests, memory)
    for step in range(n_steps):
        scheduler.step(step)
    served = scheduler.served(n_steps)
    scheduler.let_go()
    return served


class Scheduler:
    def __init__(self, requests: Iterable[Request], memory: Memory):
        self.memory = memory
        self.arriving = deque(Sequence(request) for request in requests)
        self.arrived: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of admission
        self.finished: list[Sequence] = []
        self._seen = Observed()

    def step(self, step: int) -> None:
        while self.arriving and self.arriving[0].request.arrival <= step:
            self.waiting.append(sequence := self.arriving.popleft())
            self.arrived.append(sequence)
        self._admit(step)
        self._grow()
        self._seen.add(self.memory, self.waiting, len(self.running))
        self._finish()

    def served(self, n_steps: int) -> Served:
        waits = [(n_steps if s.admitted is None else s.admitted) - s.request.arrival for s in self.arrived]
        return Served(
            n_slots=self.memory.n_slots,
            n_arrived=len(self.arrived),
            n_finished=len(self.finished),
            n_running=len(self.running),
            n_waiting=len(self.waiting),
            finished_tokens_per_step=sum(s.n_generated for s in self.finished) / n_steps,
            waiting_steps=sum(waits) / max(len(waits), 1),
            **self._seen.means(self.memory.n_slots),
        )

    def let_go(self) -> None:
        for sequence in (*self.running, *(s for s in self.waiting if s.swapped)):
            self.memory.release(sequence)
        self.running.clear()

    def _admit(self, step: int) -> None:
        while self.waiting and self.memory.admit(self.waiting[0], alone=not self.running):
            sequence = self.waiting.popleft()
            sequence.admitted, sequence.swapped = step if sequence.admitted is None else sequence.admitted, False
            self.running.append(sequence)

    def _grow(self) -> None:
        """The oldest first, so that a sequence that is preempted has not been reached yet."""
        i = 0
        while i < len(self.running):
            if self.memory.grow(self.running[i]):
                self.running[i].n_generated += 1
                i += 1
            else:
                self._preempt(self.running.pop())

    def _preempt(self, sequence: Sequence) -> None:
        sequence.swapped = self.memory.preempt(sequence)
        self.waiting.appendleft(sequence)
        self._seen.n_preemptions += 1
        self._seen.n_recomputed += 0 if sequence.swapped else sequence.n_tokens

    def _finish(self) -> None:
        done = [s for s in self.running if s.finished]
        for sequence in done:
            self.memory.release(sequence)
        self.running = [s for s in self.running if not s.finished] if done else self.running
        self.finished += done


def require_room(requests: Iterable[Request], memory: Memory) -> None:
    """Raises ValueError for a request that all of the memory has no room for."""
    largest = max(requests, key=memory.n_needed)
    if (n_needed := memory.n_needed(largest)) > memory.n_slots:
        raise ValueError(f"request={largest.id}: its {largest.n_tokens} tokens take {n_needed} slots, and memory has "
                         f"{memory.n_slots}; valid: more memory (gpu_gb), or shorter requests (max_len)")  # fmt: skip


@dataclass
class Observed:
    """Sums over steps."""

    n_steps: int = 0
    n_busy: int = 0  # steps in which anything is allocated
    n_held: int = 0
    n_unfilled: int = 0
    n_unusable: int = 0
    utilisation: float = 0
    n_running: int = 0
    most_running: int = 0
    n_preemptions: int = 0
    n_recomputed: int = 0

    def add(self, memory: Memory, waiting: deque[Sequence], n_running: int) -> None:
        held, allocated = memory.n_held, memory.n_allocated
        self.n_steps += 1
        self.n_held += held
        self.n_unfilled += allocated - held
        self.n_unusable += memory.n_unusable(waiting[0]) if waiting else 0
        self.n_running += n_running
        self.most_running = max(self.most_running, n_running)
        if allocated:
            self.n_busy += 1
            self.utilisation += held / allocated

    def means(self, n_slots: int) -> dict[str, Any]:
        """As `Served` names them."""
        everything = self.n_steps * n_slots
        return {
            "utilisation": self.utilisation / max(self.n_busy, 1),
            "held": self.n_held / everything,
            "unfilled": self.n_unfilled / everything,
            "unusable": self.n_unusable / everything,
            "concurrent_mean": self.n_running / self.n_steps,
            "concurrent_peak": self.most_running,
            "n_preemptions": self.n_preemptions,
            "n_recomputed": self.n_recomputed,
        }
