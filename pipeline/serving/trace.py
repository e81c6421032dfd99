"""Requests as they arrive: a Poisson process, log-normal lengths, prompts that begin alike. One seed, one trace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.serving.plan import LogNormal, Trace


@dataclass(frozen=True, slots=True)
class Request:
    id: int
    arrival: int  # step
    n_prompt: int  # tokens, with those in common
    n_output: int
    prefix: int | None  # which common prompt it begins with
    n_prefix: int  # tokens of that

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_output


def requests(trace: Trace, *, n_steps: int, max_len: int, seed: int) -> list[Request]:
    """In the order of arrival; lengths are cut to `max_len` tokens. Raises ValueError where nothing arrives."""
    random, common = np.random.default_rng(seed), trace.system_prompts
    arrivals = np.repeat(np.arange(n_steps), random.poisson(trace.arrivals_per_step, n_steps))
    n = len(arrivals)
    if n == 0:
        raise ValueError(f"trace.arrivals_per_step={trace.arrivals_per_step}: nothing arrives in {n_steps} steps; "
                         "valid: a higher rate, or more steps")  # fmt: skip
    begins_alike = random.random(n) < common.share
    prefix = random.integers(common.n, size=n)
    n_prefix = np.where(begins_alike, common.n_tokens, 0)
    n_prompt = np.minimum(n_prefix + _lengths(trace.prompt, n, random), max_len - 1)
    n_output = np.minimum(_lengths(trace.output, n, random), max_len - n_prompt)
    columns = (column.tolist() for column in (arrivals, n_prompt, n_output, prefix, n_prefix))
    return [
        Request(i, arrival, n_prompt, n_output, prefix if n_prefix else None, n_prefix)
        for i, (arrival, n_prompt, n_output, prefix, n_prefix) in enumerate(zip(*columns, strict=True))
    ]


def _lengths(of: LogNormal, n: int, random: np.random.Generator) -> NDArray[np.int64]:
    drawn = random.lognormal(math.log(of.median), of.sigma, n)
    return np.maximum(1, np.minimum(drawn, 2**31)).round().astype(np.int64)
