"""Pairs of layers that share directions: against explicit interpolation, and what is held of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strategies.attention import grouped_attention
from strategies.layer import tensor_bytes
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.merged_pair import LayerOfPair
from strategies.token.minicache import MiniCache
from strategies.token.parts import Encoding
from strategies.token.per_token import PerTokenStorage
from strategies.token.slerp import between

Tokens = tuple[Tensor, Tensor]
BLOCK = 20


def random_layers(n_tokens: int, n_layers: int = 2, dtype: torch.dtype = torch.double) -> list[Tokens]:
    """Keys and values [2, 3, n, 8] of each layer."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_layers, 2, 2, 3, n_tokens, 8)
    return [(key, value) for key, value in torch.randn(shape, generator=generator, dtype=torch.double).to(dtype)]


def loaded(layers: list[Tokens], n_prompt: int, encoding: Encoding = DenseStorage, **how: float) -> list[LayerOfPair]:
    """The upper two of four layers, once they were given a prompt and then, one by one, the other tokens."""
    storages = MiniCache(**how)(Contiguous().storages([encoding] * 4), range(4))  # type: ignore[arg-type]
    held = [storages(2), storages(3)]
    n_tokens = layers[0][0].shape[2]
    for storage, (key, value) in zip(held, layers, strict=True):
        storage.load(key[:, :, :n_prompt], value[:, :, :n_prompt], n_tokens)
    for t in range(n_prompt, n_tokens):
        for storage, (key, value) in zip(held, layers, strict=True):
            storage.append(t, key[:, :, t : t + 1], value[:, :, t : t + 1])
    return held  # type: ignore[return-value]


def on_the_arc(lower: Tensor, upper: Tensor, t: float) -> Tensor:
    """Of two vectors [D]: turn the first by a part of the angle, in the plane of both."""
    first, second = lower / lower.norm(), upper / upper.norm()
    aside = second - (first @ second) * first
    angle = torch.arccos((first @ second).clamp(-1, 1))
    return first if aside.norm() == 0 else (t * angle).cos() * first + (t * angle).sin() * aside / aside.norm()


def test_directions_lie_on_the_arc_between_the_layers() -> None:
    (lower, upper), _ = random_layers(10)
    direction, norms, angle = between(lower, upper, 0.6)
    for at in [(b, h, t) for b in range(2) for h in range(3) for t in range(10)]:
        torch.testing.assert_close(direction[at], on_the_arc(lower[at], upper[at], 0.6), rtol=0, atol=1e-12)
        assert norms[1][at] == pytest.approx(upper[at].norm().item())
        assert angle[at].cos() == pytest.approx((lower[at] @ upper[at] / lower[at].norm() / upper[at].norm()).item())


def test_vectors_that_span_no_plane_have_a_direction_of_length_one() -> None:
    vector = torch.randn(5, 8, dtype=torch.double)
    for other in (vector, 2 * vector, vector + 1e-9, -vector):
        direction, _, _ = between(vector, other, 0.6)
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones(5, dtype=torch.double))
    assert between(vector, -vector, 0.5)[0].isfinite().all() and between(vector, 0 * vector, 0.5)[0].isfinite().all()


def expected(layers: list[Tokens], n_prompt: int) -> list[Tokens]:
    """What each layer should hold, token by token: the arc's direction at its own length, or the original."""
    held = [(key.clone(), value.clone()) for key, value in layers]
    n_tokens = layers[0][0].shape[2]
    blocks = [(0, n_prompt // BLOCK * BLOCK)]
    blocks += [(start, start + BLOCK) for start in range(blocks[0][1], n_tokens - BLOCK + 1, BLOCK)]
    for which, b, h in [(which, b, h) for which in range(2) for b in range(2) for h in range(3)]:
        rows = [layer[which][b, h] for layer in layers]
        alike = torch.cosine_similarity(*rows, dim=-1).tolist()
        for start, end in blocks:
            retained = sorted(range(start, end), key=alike.__getitem__)[: (end - start) // BLOCK]
            for t in set(range(start, end)) - set(retained):
                direction = on_the_arc(rows[0][t], rows[1][t], 0.6)
                for layer, row in zip(held, rows, strict=True):
                    layer[which][b, h, t] = direction * row[t].norm()
    return held


@pytest.mark.parametrize("n_prompt", [1, 40, 67], ids=["one", "blocks", "more"])
def test_the_most_distant_are_originals_and_attention_equals_that_on_rebuilt_tokens(n_prompt: int) -> None:
    layers, query = random_layers(90), torch.randn(2, 6, 1, 8, dtype=torch.double)
    for storage, (key, value) in zip(loaded(layers, n_prompt), expected(layers, n_prompt), strict=True):
        for got, wanted in zip(storage.tokens(90), (key, value), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)
        got = storage.attend(query, 90, None, scaling=0.5, softcap=None)
        torch.testing.assert_close(got, grouped_attention(query, key, value, None, scaling=0.5), rtol=0, atol=1e-9)


def test_retained_tokens_are_their_originals_to_the_last_digit() -> None:
    layers = random_layers(200)
    for storage, tokens in zip(loaded(layers, 200), layers, strict=True):
        for got, original in zip(storage.tokens(200), tokens, strict=True):
            assert ((got == original).all(-1).sum(-1) == 10).all()


def test_with_gamma_what_lies_near_the_largest_angle_is_retained() -> None:
    layers = random_layers(200)
    for storage, tokens in zip(loaded(layers, 200, gamma=0.3), layers, strict=True):
        for which, got in enumerate(storage.tokens(200)):
            angle = torch.cosine_similarity(layers[0][which], layers[1][which], dim=-1).arccos()
            low, high = angle.aminmax(dim=-1, keepdim=True)
            assert torch.equal((got == tokens[which]).all(-1), angle >= high - 0.3 * (high - low))


@pytest.mark.parametrize("how", [{}, {"gamma": 0.05}], ids=["fraction", "gamma"])
def test_layers_that_point_the_same_way_lose_nothing(how: dict[str, float]) -> None:
    (layer, _) = random_layers(90)
    layers = [layer, (3 * layer[0], layer[1] / 2)]
    for storage, tokens in zip(loaded(layers, 50, **how), layers, strict=True):
        for got, original in zip(storage.tokens(90), tokens, strict=True):
            torch.testing.assert_close(got, original, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_layers", [8, 12, 36])
def test_the_upper_half_merged_saves_22_percent(n_layers: int) -> None:
    storages = MiniCache()(Contiguous().storages([DenseStorage] * n_layers), range(n_layers))
    held = [storages(layer) for layer in range(n_layers)]
    tokens = torch.randn(1, 1, 400, 128)
    for storage in held:
        storage.load(tokens, tokens, 400)
    of_full = n_layers * 2 * tokens.nbytes
    assert sum(storage.bytes_of(400) for storage in held) / of_full == pytest.approx(0.78, abs=0.01)


def test_both_originals_are_freed_once_the_upper_layer_is_there() -> None:
    layers = random_layers(400, dtype=torch.float32)
    held = loaded(layers, 400)
    of_both = sum(tensor.nbytes for layer in layers for tensor in layer)
    least = 2 * 2 * 3 * 4  # a bound for each row and head, of keys and of values
    assert tensor_bytes(*held) <= sum(storage.bytes_of(400) for storage in held) + least < 0.75 * of_both


def test_four_bits_hold_the_directions_and_leave_the_retained_as_they_are() -> None:
    layers = random_layers(100)
    held = loaded(layers, 100, lambda room: PerTokenStorage(room, bits=4))
    for storage, dense, tokens in zip(held, loaded(layers, 100), layers, strict=True):
        for got, wanted, original in zip(storage.tokens(100), dense.tokens(100), tokens, strict=True):
            assert ((got == original).all(-1).sum(-1) == 5).all()
            assert ((got - wanted).norm(dim=-1) <= 0.21 * wanted.norm(dim=-1)).all()  # √8 / 14 of the length


@pytest.mark.parametrize("n_layers", [1, 5, 6])
def test_an_upper_half_that_makes_no_pairs_is_refused(n_layers: int) -> None:
    with pytest.raises(ValueError, match=r"sharing=MiniCache: .* makes no pairs; valid: an even number"):
        MiniCache()(Contiguous().storages([DenseStorage] * n_layers), range(n_layers))


@pytest.mark.parametrize("how", [{"t": 1.5}, {"block_size": 0}, {"gamma": -0.1}], ids=str)
def test_what_cannot_be_is_refused(how: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"sharing\.{next(iter(how))}=.*; valid: "):
        MiniCache(**how)  # type: ignore[arg-type]
