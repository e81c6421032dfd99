"""Patterns are those of the papers, in every form that they are asked for, and blocks compute what a mask would."""

from __future__ import annotations

import pytest
import torch

from pipeline.memory.measured import peak_growths
from strategies.model import blockwise
from strategies.model.bigbird import BigBird
from strategies.model.blockwise import sparse_attention
from strategies.model.patterns import BLOCK
from tests.strategies.model.sparse_models import N_LAYERS, STATIC, mask, model

N = 2 * BLOCK + 21
LAYERS = [(kind, layer) for kind in STATIC for layer in range(N_LAYERS)]


def pattern_of(kind, layer=0):
    return model(kind).config.pattern_of(layer)


@pytest.mark.parametrize("kind, layer", LAYERS)
def test_a_query_sees_what_the_paper_says(kind, layer):
    position = torch.arange(N)
    assert pattern_of(kind, layer).visible(position[:, None], position).equal(mask(kind, layer, N))


@pytest.mark.parametrize("kind, layer", LAYERS)
def test_the_keys_of_one_query_are_those_that_it_sees(kind, layer):
    for query in range(N):
        assert pattern_of(kind, layer).keys(query).equal(mask(kind, layer, N)[query].nonzero()[:, 0])


@pytest.mark.parametrize("horizon", [1, 2, 23, N])
@pytest.mark.parametrize("kind, layer", LAYERS)
def test_the_last_reader_is_the_last_query_that_sees_a_key(kind, layer, horizon):
    seen = mask(kind, layer, N)[:horizon, :horizon]
    last = [int(column.nonzero().max()) for column in seen.T]
    assert pattern_of(kind, layer).last_reader(horizon).tolist() == last


@pytest.mark.parametrize("n_tokens", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, N])
@pytest.mark.parametrize("kind, layer", LAYERS)
def test_parts_hold_every_visible_pair_exactly_once(kind, layer, n_tokens):
    n_times = torch.zeros(n_tokens, n_tokens, dtype=torch.long)
    for queries, keys, seen in pattern_of(kind, layer).parts(n_tokens):
        assert queries[queries < n_tokens].sort().values.equal(torch.arange(n_tokens))
        seen = seen & (queries < n_tokens)[..., None]
        query, key = (index.expand_as(seen)[seen] for index in (queries[..., None], keys[:, None]))
        n_times.index_put_((query, key), torch.ones_like(query), accumulate=True)
    assert n_times.equal(mask(kind, layer, N)[:n_tokens, :n_tokens].long())


@pytest.mark.parametrize("n_tokens", [1, 7, BLOCK, N])
@pytest.mark.parametrize("kind, layer", LAYERS)
def test_blocks_give_the_outputs_and_gradients_of_a_mask(kind, layer, n_tokens, monkeypatch):
    torch.manual_seed(n_tokens)
    shapes = ((2, 4, n_tokens, 8), (2, 2, n_tokens, 8), (2, 2, n_tokens, 8))
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    query, key, value = given
    score = query @ key.repeat_interleave(2, 1).mT * 0.3
    seen = mask(kind, layer, N)[:n_tokens, :n_tokens]
    expected = score.masked_fill(~seen, float("-inf")).softmax(-1) @ value.repeat_interleave(2, 1)
    monkeypatch.setattr(blockwise, "BLOCKWISE", 1)
    found = sparse_attention(pattern_of(kind, layer), *given, scaling=0.3)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    for one, other in zip(*(torch.autograd.grad(output, given, towards) for output in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", STATIC)
def test_a_long_prompt_never_makes_a_square_of_numbers(kind):
    tokens = [torch.randn(1, 1, 3000, 8) for _ in range(3)]
    blockwise.layout(pattern_of(kind), 3000, tokens[0].device)
    (peak,) = peak_growths((sparse_attention(pattern_of(kind), *tokens, scaling=1.0) for _ in range(1)), "cpu")
    assert peak < 3000**2 * 4 / 2


def test_random_blocks_are_different_earlier_ones_and_do_not_change_with_the_length():
    pattern = BigBird(block=4, n_window=2, n_global=1, n_random=3, layer_idx=0)
    drawn = pattern.drawn(40)
    for own, blocks in enumerate(drawn.tolist()):
        there = [block for block in blocks if block >= 0]
        assert len(set(there)) == len(there) == min(3, max(own - 2, 0))
        assert all(1 <= block <= own - 2 for block in there)
    assert drawn[:9].equal(pattern.drawn(9))
    assert not drawn.equal(BigBird(block=4, n_window=2, n_global=1, n_random=3, layer_idx=1).drawn(40))
    assert drawn[6:8].tolist() == [[1, 3, 4], [2, 3, 5]]  # trained weights rely on them
