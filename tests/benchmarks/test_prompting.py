"""Prompts that are copied or streamed leave the cache as prompts of their own would."""

from __future__ import annotations

import pytest
import torch

from benchmarks.prompting import Streamed, Widened
from tests.pipeline import small

BUDGET, N_PROMPT, N_NEW = 48, 80, 6


@pytest.mark.parametrize("strategy", ["full", "sliding_window", "attention_sink", "h2o", "hf_dynamic", "hf_static"])
def test_a_copied_prompt_continues_as_equal_prompts_would(strategy: str) -> None:
    budget = None if strategy in {"full", "hf_dynamic", "hf_static"} else BUDGET
    prompt = small.tokens(1, N_PROMPT).expand(3, -1)
    new = small.tokens(3, N_NEW, seed=1)  # rows part here
    plain, other = (small.fresh(strategy, N_NEW, budget)() for _ in range(2))
    widened = Widened(other.model, other.cache)
    with plain, widened:
        same = torch.equal(plain.feed(prompt).argmax(-1), widened.feed(prompt).argmax(-1))
        assert same
        torch.testing.assert_close(widened.teacher_force(new), plain.teacher_force(new))
    assert widened.kv_bytes_logical == plain.kv_bytes_logical


def test_a_streamed_prompt_stops_where_it_was_told_and_goes_on_with_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Streamed, "CHUNK", 16)
    prompt, new = small.tokens(1, N_PROMPT), small.tokens(1, N_NEW, seed=1)
    plain, other = (small.fresh("sliding_window", N_NEW, BUDGET)() for _ in range(2))
    streamed = Streamed(other.model, other.cache, n_tokens=64)
    with plain, streamed:
        for chunk in prompt[:, :64].split(16, dim=1):
            expected = plain.feed(chunk)
        torch.testing.assert_close(streamed.feed(prompt), expected)
        torch.testing.assert_close(streamed.teacher_force(new), plain.teacher_force(new))
    assert streamed.n_seen == 64 + N_NEW
