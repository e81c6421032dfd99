"""Low-rank keys and values: what a basis loses, and that attention on latents is attention on what they stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from strategies.attention import grouped_attention
from strategies.calibration import Spectrum, calibrate
from strategies.rope import Rotation
from strategies.token.contiguous import Contiguous
from strategies.token.low_rank import LowRank, LowRankStorage
from tests.strategies import techniques
from tests.strategies.models import family, prompt
from tests.strategies.test_laws import stream

D, ROTATION = 8, Rotation(torch.tensor([1.0, 0.3, 0.1, 0.01]))
PRE_ROPE = "strategy.encoding.pre_rope=true"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def held(rank: int, n_tokens: int, *, pre_rope: bool) -> tuple[LowRankStorage, Tensor, Tensor]:
    """A storage of `n_tokens` random tokens, the last of them appended, in random bases; and those tokens."""
    key, value = random(2, 2, n_tokens, D), random(2, 2, n_tokens, D, seed=1)
    bases = Spectrum.of(random(1, 2, 50, D, seed=2)).basis(rank), Spectrum.of(random(1, 2, 50, D, seed=3)).basis(rank)
    rotation = ROTATION if pre_rope else None
    storage = LowRankStorage(Contiguous(), pre_rope=pre_rope, bases=bases, rotation=rotation)
    storage.load(key[:, :, :-1], value[:, :, :-1], n_tokens)
    storage.append(n_tokens - 1, key[:, :, -1:], value[:, :, -1:])
    return storage, key, value


@pytest.mark.parametrize("pre_rope", [False, True])
def test_all_dimensions_give_back_every_key_and_value(pre_rope: bool) -> None:
    storage, key, value = held(D, 300, pre_rope=pre_rope)
    for got, expected in zip(storage.tokens(300), (key, value), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("pre_rope", [False, True])
def test_attention_on_latents_is_attention_on_what_they_stand_for(pre_rope: bool, softcap: float | None) -> None:
    storage, *_ = held(3, 300, pre_rope=pre_rope)
    query, mask = random(2, 4, 1, D, seed=4), (torch.arange(300) % 3 > 0)[None, None, None]
    expected = grouped_attention(query, *storage.tokens(300), mask, scaling=0.4, softcap=softcap)
    how: dict[str, Any] = {"scaling": 0.4, "softcap": softcap}
    output, received = storage.attend_observed(query, 300, mask, **how)
    tolerance = 1e-6 if softcap else 1e-12  # soft-capped weights are single precision
    torch.testing.assert_close(storage.attend(query, 300, mask, **how), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(received.sum(-1), torch.full((2, 2), 2.0, dtype=torch.double))


def test_a_basis_loses_the_energies_that_it_leaves_out_and_no_other_loses_less() -> None:
    vectors = random(2, 3, 200, D) @ random(D, D, seed=1)
    spectrum = Spectrum.of(vectors)

    def lost(basis: Tensor) -> Tensor:
        rebuilt = vectors @ basis @ basis.transpose(-1, -2)
        return (vectors - rebuilt).square().sum(-1).mean((0, 2))

    torch.testing.assert_close(lost(spectrum.basis(3)), spectrum.energies[:, 3:].sum(-1))
    for seed in range(20):
        other = torch.linalg.qr(random(3, D, 3, seed=seed)).Q
        assert (lost(other) >= lost(spectrum.basis(3))).all()


@pytest.mark.parametrize("pre_rope", [False, True])
def test_tokens_of_few_dimensions_lose_nothing_at_that_rank(pre_rope: bool) -> None:
    key, value = (random(2, 2, 60, 3, seed=seed) @ random(3, D, seed=seed + 1) for seed in (0, 2))
    if pre_rope:
        key = ROTATION.turned(key, torch.arange(60))
    unturned = ROTATION.turned(key, -torch.arange(60)) if pre_rope else key
    storage = LowRankStorage(
        Contiguous(),
        pre_rope=pre_rope,
        bases=(Spectrum.of(unturned).basis(3), Spectrum.of(value).basis(3)),
        rotation=ROTATION if pre_rope else None,
    )
    storage.load(key, value, 64)
    for got, expected in zip(storage.tokens(60), (key, value), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("model_name", "pre_rope"), [("llama", "false"), ("llama", "true"), ("gpt2", "false")])
def test_full_rank_changes_nothing(model_name: str, pre_rope: str) -> None:
    model, ids = family(model_name), prompt(2, 60)
    overrides = ("strategy.encoding.rank_ratio=1", f"strategy.encoding.pre_rope={pre_rope}")
    cache = techniques.build("low_rank_kv", model, 24, 8, *overrides)
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(stream(model, cache, ids, n_prompt=40), expected, rtol=0, atol=1e-6)


def test_keys_before_their_rotation_answer_under_generate_and_after_growing() -> None:
    model, ids = family("qwen3"), prompt(2, 30)
    cache = techniques.build("low_rank_kv", model, 24, 4, PRE_ROPE)
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert got.shape == (2, 42) and cache.get_seq_length() == 41


def test_half_the_rank_holds_half_the_bytes_and_counts_its_bases() -> None:
    model, ids = family("llama"), prompt(1, 50)
    caches = [techniques.build(name, model) for name in ("full", "low_rank_kv")]
    for cache in caches:
        stream(model, cache, ids, n_prompt=50)
    full, low = caches
    assert low.bytes_logical * 2 == full.bytes_logical
    storage = low.layers[0].storage
    bases = 3 * (storage.key_basis.nbytes + storage.value_basis.nbytes)
    assert low.bytes_held - bases < full.bytes_held - low.bytes_logical


def test_calibration_sees_what_attention_is_given() -> None:
    model, ids = copy.deepcopy(family("llama")), prompt(2, 30, seed=3)
    seen = calibrate(model, ids)
    cache = techniques.build("full", model)
    stream(model, cache, ids, n_prompt=30)
    key, value = cache.layers[1].storage.tokens(30)
    for spectrum, vectors in ((seen[1].key, key), (seen[1].value, value)):
        torch.testing.assert_close(spectrum.energies, Spectrum.of(vectors).energies)


def test_a_model_that_was_not_calibrated_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"encoding=low_rank: not calibrated for this LlamaForCausalLM; valid: .*calib"
    ):
        techniques.build("low_rank_kv", copy.deepcopy(family("llama")))


@pytest.mark.parametrize(
    ("technique", "overrides", "named"),
    [
        ("low_rank_kv", ("strategy.encoding.rank_ratio=0.01",), "rank_ratio=0.01: leaves none of 8 dimensions"),
        ("h2o", ("strategy/encoding=low_rank", PRE_ROPE), "encoding=.*pre_rope.* but schedule=EveryStep evicts"),
        ("snapkv", ("strategy/encoding=low_rank", PRE_ROPE), "encoding=.*pre_rope.* but schedule=AtPrefill evicts"),
    ],
)
def test_what_cannot_be_is_refused_by_name(technique: str, overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        techniques.build(technique, family("llama"), 24, 8, *overrides)


def test_models_without_rotary_positions_have_no_keys_before_it() -> None:
    with pytest.raises(ValueError, match=r"encoding\.pre_rope=True: model=GPT2LMHeadModel has no rotary positions"):
        techniques.build("low_rank_kv", family("gpt2"), 24, 8, PRE_ROPE)


@pytest.mark.parametrize("rank_ratio", [0, -0.5, 1.5])
def test_a_share_of_the_dimensions_is_above_nothing_and_at_most_all(rank_ratio: float) -> None:
    with pytest.raises(ValueError, match=f"encoding.rank_ratio={rank_ratio}: .*valid: more than 0"):
        LowRank(rank_ratio=rank_ratio)
