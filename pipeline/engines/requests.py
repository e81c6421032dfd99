"""How the requests of one point are drawn: random token ids, lengths forced, arrivals; the same for every engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.engines.serving import Request
from pipeline.record import Cell

SHORTEST = 8  # tokens of a log-normal length


def equal(cell: Cell, vocab_size: int, limit: int | None) -> list[Request]:
    """`batch` prompts of `seq_len` tokens, `n_new_tokens` each. Raises ValueError where they do not fit `limit`."""
    rng = np.random.default_rng(cell.seed)
    _check(cell.seq_len, cell.n_new_tokens, limit)
    ids = rng.integers(0, vocab_size, size=(cell.batch, cell.seq_len))
    return [Request(row.tolist(), cell.n_new_tokens) for row in ids]


def log_normal(cell: Cell, vocab_size: int, limit: int | None, *, sigma: float, rate_per_s: float) -> list[Request]:
    """Prompt lengths and new tokens are log-normal around those of the cell; no request exceeds `limit` positions.

    After the first, `rate_per_s` of them arrive in a second on average, each independently of the others (Poisson).
    Raises ValueError where the medians do not fit.
    """
    rng = np.random.default_rng(cell.seed)
    _check(cell.seq_len, cell.n_new_tokens, limit)
    made = []
    for _ in range(cell.batch):
        n_prompt, n_new = (_length(median, sigma, rng) for median in (cell.seq_len, cell.n_new_tokens))
        if limit is not None:
            n_prompt = min(n_prompt, limit - cell.n_new_tokens)
            n_new = min(n_new, limit - n_prompt)
        made.append(Request(rng.integers(0, vocab_size, size=n_prompt).tolist(), n_new))
    gaps_s = rng.exponential(1 / rate_per_s, size=cell.batch)
    gaps_s[0] = 0.0
    return [replace(one, arrival_s=at) for one, at in zip(made, gaps_s.cumsum().tolist(), strict=True)]


def shared_prefix(cell: Cell, vocab_size: int, limit: int | None, *, n_shared: int) -> list[Request]:
    """Prompts whose first `n_shared` tokens are the same. Raises ValueError where nothing would be left to differ."""
    if not 0 < n_shared < cell.seq_len:
        raise ValueError(
            f"workload.requests.n_shared={n_shared}: prompts have {cell.seq_len} tokens; valid: 1 to {cell.seq_len - 1}"
        )
    made = equal(cell, vocab_size, limit)
    return [Request(made[0].prompt[:n_shared] + one.prompt[n_shared:], one.n_new_tokens) for one in made]


def _length(median: int, sigma: float, rng: np.random.Generator) -> int:
    return max(SHORTEST, round(median * float(np.exp(sigma * rng.standard_normal()))))


def _check(seq_len: int, n_new_tokens: int, limit: int | None) -> None:
    if limit is not None and seq_len + n_new_tokens > limit:
        raise ValueError(
            f"workload.seq_len={seq_len}: with {n_new_tokens} tokens more, the model has only {limit} positions; "
            f"valid: at most {limit - n_new_tokens}"
        )
