"""What is asked of an engine and what it gives back: prompts as token ids, forced lengths, greedy, as they arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from pipeline.decoding import Decoder


@dataclass(frozen=True)
class Request:
    """Engines are handed all of a point in the order of their arrival, and start none before it."""

    prompt: list[int]
    n_new_tokens: int
    arrival_s: float = 0.0  # seconds after the first


@dataclass(frozen=True)
class Blocks:
    """A pool of pages: how large, and how much of it was in use at most."""

    n_blocks: int
    block_size: int  # tokens
    block_bytes: int  # keys and values of all layers
    n_used: int
    n_preemptions: int = 0
    n_prefix_tokens: int = 0  # of the prompts that were looked up
    n_prefix_hits: int = 0  # of those, found


@dataclass(frozen=True)
class Served:
    """One trial. Seconds count from the moment when the first request arrives, so that waiting is part of them."""

    tokens: list[list[int]]  # of each request
    token_s: list[list[float]]  # when each of them was there
    kv_bytes_allocated: int  # at most at once
    kv_bytes_used: int  # of tokens, at most at once
    blocks: Blocks | None = None

    @property
    def wall_s(self) -> float:
        return max(times[-1] for times in self.token_s)

    @property
    def s_per_token(self) -> float:
        return self.wall_s / sum(map(len, self.tokens))


def wait_for(request: Request, started: float) -> float:
    """Seconds from `started`, of `time.perf_counter`, to now, which is not before the request has arrived."""
    time.sleep(max(0.0, started + request.arrival_s - time.perf_counter()))
    return time.perf_counter() - started


@dataclass(frozen=True)
class Loaded:
    """What every engine is made from: one set of weights, in this process and in the folder where others read it."""

    model: PreTrainedModel
    folder: Path
    dtype: str
    n_threads: int
    seed: int
    # For our own loop: a decoder with the cache of the strategy, given the number of tokens that follow the prompt; and
    # whether that cache holds every token in the model's own numbers.
    new_decoder: Callable[[int], Decoder]
    is_lossless: bool = True


class Engine(Protocol):
    """Made from one `Loaded`, started once, asked many times, closed in the end."""

    is_exact: bool  # its greedy tokens have to be those of the model
    start_up_s: float
    version: str | None  # where it has an environment of its own

    def start(self) -> None:
        """Raises ImportError where something is not installed, NotImplementedError where it cannot run here."""

    def serve(self, requests: Sequence[Request]) -> Served: ...

    def close(self) -> None: ...


class InProcess:
    """An engine of this process, which needs no start and has nothing to end."""

    is_exact = True
    start_up_s = 0.0
    version: str | None = None

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass
