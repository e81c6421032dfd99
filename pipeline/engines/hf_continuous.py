"""Transformers' continuous batching: requests join and leave between steps, over a paged cache of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from transformers import ContinuousBatchingConfig, GenerationConfig

from pipeline import models
from pipeline.engines.serving import Blocks, InProcess, Loaded, Request, Served, wait_for
from pipeline.memory.costs import kv_bytes_per_token

NO_TOKEN = -1
_PAGE_SIZE = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"  # up to transformers 5.18
WAIT_S = 1.0


class HFContinuous(InProcess):
    """A manager, whose start is not part of a trial, for each trial: a model with one attends in another way.

    `page_size` tokens are in a page, and as many pages as the requests need; `max_batch_tokens` are in a step.
    """

    def __init__(self, loaded: Loaded, *, page_size: int, max_batch_tokens: int) -> None:
        self.model = loaded.model
        self.page_size, self.max_batch_tokens = page_size, max_batch_tokens
        self.start_up_s = 0.0

    def serve(self, requests: Sequence[Request]) -> Served:
        """Raises RuntimeError where its thread ended, or a request failed."""
        n_blocks = sum(-(-(len(one.prompt) + one.n_new_tokens) // self.page_size) for one in requests) + 1
        size: dict[str, Any] = {_PAGE_SIZE: self.page_size}
        config = ContinuousBatchingConfig(
            num_blocks=n_blocks, max_batch_tokens=self.max_batch_tokens, allow_block_sharing=False, **size
        )
        started = time.perf_counter()
        with (
            models.quiet(),
            self.model.continuous_batching_context_manager(  # type: ignore[operator]
                generation_config=GenerationConfig(do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0),
                continuous_batching_config=config,
            ) as manager,
        ):
            self.start_up_s = time.perf_counter() - started
            started = time.perf_counter()
            for index, one in enumerate(requests):
                wait_for(one, started)
                manager.add_request(one.prompt, str(index), one.n_new_tokens, record_timestamps=True,
                                    eos_token_id=NO_TOKEN)  # fmt: skip
            done = _results(manager, len(requests))
        block_bytes = self.page_size * kv_bytes_per_token(self.model.config, self.model.dtype)
        token_s = [[at - started for at in done[str(index)].timestamps] for index in range(len(requests))]
        n_used = most_pages(requests, token_s, self.page_size)
        return Served(
            [done[str(index)].generated_tokens for index in range(len(requests))],
            token_s,
            kv_bytes_allocated=n_blocks * block_bytes,
            kv_bytes_used=n_used * block_bytes,
            blocks=Blocks(n_blocks, self.page_size, block_bytes, n_used),
        )


def most_pages(requests: Sequence[Request], token_s: Sequence[Sequence[float]], page_size: int) -> int:
    """Pages of all requests at once, by when each token was there: its manager does not say.

    A request fills them with its prompt and what it was fed of its answer, and gives them back with its last token.
    """
    changes: list[tuple[float, int]] = []
    for request, times in zip(requests, token_s, strict=True):
        pages = [-(-(len(request.prompt) + n_fed) // page_size) for n_fed in range(len(times))]
        changes += zip(times, np.diff(pages, prepend=0).tolist(), strict=True)
        changes.append((times[-1], -pages[-1]))
    ordered = sorted(changes, key=lambda change: (change[0], -change[1]))  # of one moment, what is taken comes first
    return max(accumulate(change for _, change in ordered))


def _results(manager: Any, n: int) -> dict[str, Any]:
    """Of all requests, as they finish."""
    done: dict[str, Any] = {}
    while len(done) < n:
        result = manager.get_result(timeout=WAIT_S)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("the thread of continuous batching ended unexpectedly")
        elif result.error is not None:  # which not every version counts as finished
            raise RuntimeError(f"continuous batching: {result.error}")
        elif result.is_finished():
            done[result.request_id] = result
    return done
