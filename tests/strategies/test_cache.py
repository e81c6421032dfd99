"""What the slot cache accepts, what it refuses, and what it leaves to the model."""

from __future__ import annotations

import copy

import pytest
import torch
from hydra.utils import instantiate
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from strategies.calibration import calibrate
from strategies.rope import rotation_of
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from tests.strategies import techniques
from tests.strategies.models import VOCAB, WINDOW, family, prompt
from tests.strategies.techniques import BUDGET
from tests.strategies.test_laws import feed, stream


def gemma2() -> PreTrainedModel:
    """Soft-capped scores; sliding and full layers in turn."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, initializer_range=0.3,
        attn_logit_softcapping=5.0,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).double().eval()


def test_soft_capped_mixed_layers_give_the_stock_logits() -> None:
    model, ids = gemma2(), prompt(2, 60)
    model.set_attn_implementation("eager")  # the only stock implementation that soft-caps
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    got = stream(model, techniques.build("full", model), ids, n_prompt=40)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_sliding_layers_of_a_mixed_model_are_left_alone() -> None:
    model = gemma2()
    cache = techniques.build("sliding_window", model, kv_budget=8)
    stream(model, cache, prompt(1, 40), n_prompt=30)
    assert [layer.n_held for layer in cache.layers] == [WINDOW, 8, WINDOW, 8]


def test_a_window_of_the_models_own_is_respected_by_scattered_tokens() -> None:
    model, ids = family("mistral"), prompt(1, 41)
    scorer = instantiate({"_target_": "strategies.token.random.RandomScorer", "window_size": 4})
    cache = instantiate(techniques.config("random_eviction").strategy.cache)(model=model, kv_budget=15, scorer=scorer)
    stream(model, cache, ids[:, :40], n_prompt=30)
    poisoned = copy.deepcopy(cache)
    layer = poisoned.layers[0]
    out_of_sight = layer.positions <= 40 - WINDOW
    assert out_of_sight.any()
    with torch.inference_mode():
        layer.storage.keys[out_of_sight] += 100.0
    torch.testing.assert_close(feed(model, poisoned, ids[:, 40:]), feed(model, cache, ids[:, 40:]))


def test_a_budget_above_the_models_own_window_leaves_the_window() -> None:
    cache = techniques.build("random_eviction", family("mistral"), kv_budget=WINDOW + 1)
    assert all(layer.retention.kv_budget == WINDOW and layer.retention.scorer.contiguous for layer in cache.layers)


def test_sinks_stream_far_beyond_the_trained_positions() -> None:
    model, ids = family("llama"), prompt(1, 600)
    assert model.config.max_position_embeddings < 600
    cache = techniques.build("attention_sink", model, kv_budget=16)
    assert torch.isfinite(stream(model, cache, ids, n_prompt=30)).all()
    assert cache.layers[0].positions.flatten().sort().values.tolist() == [0, 1, 2, 3, *range(588, 600)]


def test_rotations_compose() -> None:
    rotation = rotation_of(family("llama"))
    assert rotation is not None
    key = torch.randn(1, 2, 4, 8, dtype=torch.double)
    at = {shift: rotation(rotation.prepare(key), torch.tensor(shift)) for shift in (0, 300, 684)}
    torch.testing.assert_close(at[0], key, rtol=0, atol=1e-6)
    twice = rotation(rotation.prepare(at[300]), torch.tensor(384))
    torch.testing.assert_close(twice, at[684], rtol=0, atol=1e-4)


def test_sinks_keep_true_positions_where_they_are_learned() -> None:
    model = family("gpt2")
    cache = techniques.build("attention_sink", model, kv_budget=16)
    stream(model, cache, prompt(1, 60), n_prompt=30)
    assert cache.layers[0].sinks is None
    assert cache.layers[0].positions.flatten().sort().values.tolist() == [0, 1, 2, 3, *range(48, 60)]


def test_random_eviction_keeps_a_uniform_sample_that_differs_between_heads_and_layers() -> None:
    scorer = instantiate({"_target_": "strategies.token.random.RandomScorer", "window_size": 1})
    key = torch.empty(1, 64, 1000, 1)
    position = torch.arange(1000)[None, None]
    top = scorer.score(key, key, position, layer_idx=0).topk(250, dim=-1).indices
    share = torch.zeros(1000).scatter_add_(0, top.flatten(), torch.ones(top.numel())) / 64
    assert abs(share[:500].mean() - 0.25) < 0.01  # old tokens are as likely as new ones
    assert share.std() < 0.08  # binomial: sqrt(0.25 · 0.75 / 64) = 0.054
    assert not torch.equal(top[:, 0], top[:, 1])
    assert not torch.equal(top, scorer.score(key, key, position, layer_idx=1).topk(250, dim=-1).indices)
    other = instantiate({"_target_": "strategies.token.random.RandomScorer", "window_size": 1, "seed": 1})
    assert not torch.equal(top, other.score(key, key, position, layer_idx=0).topk(250, dim=-1).indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("technique", techniques.CACHED)
def test_narrow_types_stay_near_the_wide_one(technique: str, dtype: torch.dtype) -> None:
    wide, ids = family("llama"), prompt(2, 40)
    narrow = LlamaForCausalLM(wide.config).eval()
    narrow.load_state_dict(wide.state_dict())
    narrow.to(dtype)
    calibrate(narrow, prompt(4, 64, seed=1))
    expected = stream(wide, techniques.build(technique, wide), ids, n_prompt=30)
    got = stream(narrow, techniques.build(technique, narrow), ids, n_prompt=30)
    correlation = torch.corrcoef(torch.stack([expected.flatten(), got.double().flatten()]))[0, 1]
    assert correlation > 0.95  # a rounded score may choose another of two equals


def test_padding_is_refused() -> None:
    model, ids = family("llama"), prompt(2, 10)
    cache = techniques.build("full", model)
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    with cache.attached(model), pytest.raises(ValueError, match="padding"):
        model.generate(ids, attention_mask=padded, past_key_values=cache, max_new_tokens=2)


def test_a_cache_that_nobody_attached_says_so_instead_of_answering_without_a_past() -> None:
    model, ids = family("llama"), prompt(1, 10)
    with pytest.raises(RuntimeError, match=r"not attached; use: with cache\.attached\(model\)"):
        model.generate(ids, past_key_values=techniques.build("full", model), max_new_tokens=3)


def test_attention_that_cannot_be_replaced_is_refused_by_name() -> None:
    model = FalconForCausalLM(
        FalconConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    )
    cache = techniques.build("full", model)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="FalconForCausalLM"), cache.attached(model):
        pass
    assert model.config._attn_implementation == before


def test_learned_sinks_are_refused_by_name() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = GptOssForCausalLM(GptOssConfig(vocab_size=VOCAB, layer_types=["full_attention"], **shape, **experts)).eval()
    with pytest.raises(ValueError, match="s_aux"):
        feed(model, techniques.build("full", model), prompt(1, 8))


def test_the_models_own_attention_comes_back_after_a_failure() -> None:
    model = family("llama")
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="planted"), techniques.build("full", model).attached(model):
        raise RuntimeError("planted")
    assert model.config._attn_implementation == before
    with torch.inference_mode():
        model(prompt(1, 4))


def test_a_budget_that_the_protected_tokens_fill_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_budget=4: .* more than 4"):
        techniques.build("attention_sink", family("llama"), kv_budget=4)


def test_holding_nothing_refuses_a_budget() -> None:
    build = instantiate(techniques.config("no_cache").strategy.cache)
    assert build(model=family("llama"), kv_budget=None) is None
    with pytest.raises(ValueError, match="recompute"):
        build(model=family("llama"), kv_budget=8)


def test_no_room_for_the_next_token_is_refused() -> None:
    with pytest.raises(ValueError, match="headroom=0"):
        techniques.build("full", family("llama"), headroom=0)


@pytest.mark.parametrize("technique", ["kivi", "minicache"])
def test_what_cannot_be_overwritten_is_refused_where_every_layer_has_a_window(technique: str) -> None:
    with pytest.raises(ValueError, match=r"model=MistralForCausalLM: every layer has a window.*valid: "):
        techniques.build(technique, family("mistral"))


@pytest.mark.parametrize("technique", ["sliding_window", "random_eviction", "h2o", "attention_sink"])
def test_one_row_becomes_many_that_part(technique: str) -> None:
    model, ids = family("llama"), prompt(1, 40)
    cache, (alone, other) = techniques.build(technique, model), prompt(2, 12, seed=1).split(1)
    stream(model, cache, ids, n_prompt=30)
    cache.reorder_cache(torch.zeros(2, dtype=torch.long))
    both = [feed(model, cache, torch.cat([alone, other])[:, :7]), feed(model, cache, torch.cat([alone, other])[:, 7:8])]
    for row, tokens in enumerate((alone, other)):
        single = techniques.build(technique, model)
        stream(model, single, ids, n_prompt=30)
        for got, piece in zip(both, (tokens[:, :7], tokens[:, 7:8]), strict=True):
            torch.testing.assert_close(got[row : row + 1], feed(model, single, piece), rtol=0, atol=1e-9)


def test_waiting_a_single_step_is_not_waiting() -> None:
    model, ids = family("llama"), prompt(2, 60)
    at_once = stream(model, techniques.build("h2o", model), ids, n_prompt=30)
    how = ("strategy/schedule=every_n_steps", "strategy.schedule.n_steps=1")
    assert torch.equal(stream(model, techniques.build("h2o", model, BUDGET, 8, *how), ids, n_prompt=30), at_once)


def test_losers_with_long_keys_merge_in_half_precision() -> None:
    merge = instantiate({"_target_": "strategies.token.merge.Merge", "n_first": 0, "n_last": 0})
    storage = DenseStorage(Contiguous())
    key, value = (300 * torch.randn(1, 2, 8, 16)).half(), torch.randn(1, 2, 8, 16).half()
    storage.load(key, value, 8)
    memory = merge.replace(storage, 8, torch.zeros(1, 2, 1, dtype=torch.long), key[:, :, :1], None)
    assert torch.isfinite(memory).all()
    assert torch.isfinite(storage.values).all()
