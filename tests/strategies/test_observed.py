"""What tokens are said to have received is what plain attention gives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strategies import observed
from strategies.attention import visible


def received(query: Tensor, key: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """All weights at once; query [B, Hq, T, D], key [B, H, N, D], mask [T, N] → [B, H, N]."""
    score = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(-1, -2) * scaling
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    weight = score.masked_fill(~mask, float("-inf")).softmax(-1)
    return weight.sum(2).unflatten(1, (key.shape[1], -1)).sum(2)


@pytest.mark.parametrize("at_once", [1, 1000, 1 << 30], ids=["query by query", "in pieces", "all at once"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("n_queries", [40, 9, 1])
def test_a_prompt_is_observed_as_if_all_its_weights_existed(monkeypatch, at_once, softcap, window, n_queries):
    monkeypatch.setitem(observed._AT_ONCE, "cpu", at_once)
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, 40, 8, dtype=torch.double), torch.randn(2, 3, 40, 8, dtype=torch.double)
    position = torch.arange(40)[-n_queries:]
    mask = visible(position, torch.arange(40), window)
    expected = received(query[:, :, -n_queries:], key, mask, 0.3, softcap)
    how = {"scaling": 0.3, "sliding_window": window, "softcap": softcap}
    for at in (None, torch.arange(40)[None, None]):
        got = observed.attention_received(query[:, :, -n_queries:], key, position, at, **how)
        torch.testing.assert_close(got, expected)


def test_tokens_out_of_order_are_seen_by_their_positions() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 5, 8, dtype=torch.double), torch.randn(1, 2, 20, 8, dtype=torch.double)
    position, shuffle = torch.arange(15, 20), torch.randperm(20)
    in_order = observed.attention_received(query, key, position, None, scaling=1.0)
    got = observed.attention_received(query, key[:, :, shuffle], position, shuffle[None, None], scaling=1.0)
    torch.testing.assert_close(got, in_order[:, :, shuffle])


def test_a_watched_step_gives_the_same_output_and_hands_out_one_unit_per_query_head() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 20, 8), torch.randn(2, 3, 20, 8)
    mask = torch.rand(2, 3, 1, 20) < 0.7
    output, got = observed.observed_attention(query, key, value, mask, scaling=0.3, softcap=None)
    stock = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.repeat_interleave(2, dim=1), scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(output, stock)
    torch.testing.assert_close(got.sum(-1), torch.full((2, 3), 2.0))
    assert not got[~mask[:, :, 0]].any()
