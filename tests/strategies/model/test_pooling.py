"""Pooled heads are the mean of their group, and nothing else of a model changes but the bytes of its cache."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from strategies.model.pooling import pool_kv_heads
from tests.strategies.models import VOCAB, family, prompt
from tests.strategies.techniques import build

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
BUILD = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen2_biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3_norms": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}
IDS = prompt(2, 24)


@pytest.fixture(params=BUILD)
def model(request) -> PreTrainedModel:
    torch.manual_seed(0)
    made = BUILD[request.param]().double().eval()
    for name, parameter in made.named_parameters():  # biases start at 0 and norms at 1, where nothing would show
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return made


def projections(model: PreTrainedModel) -> list[torch.nn.Linear]:
    layers = model.get_decoder().layers
    return [linear for layer in layers for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj)]


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


@torch.no_grad()
def share_heads(model: PreTrainedModel, group: int) -> None:
    """Make every KV head of a group the first one."""
    for linear in projections(model):
        for parameter in linear.parameters():
            heads = parameter.unflatten(0, (-1, group, 8))
            heads.copy_(heads[:, :1].clone().expand_as(heads))


def test_as_many_heads_as_before_is_the_same_model_to_the_bit(model):
    assert torch.equal(logits(pool_kv_heads(model, 4)), logits(model))


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_heads_that_were_equal_already_compute_what_they_did(model, n_kv_heads):
    assert not torch.allclose(logits(pool_kv_heads(model, n_kv_heads)), logits(model), atol=1e-3)
    share_heads(model, 4 // n_kv_heads)
    pooled = pool_kv_heads(model, n_kv_heads)
    assert pooled.config.num_key_value_heads == n_kv_heads
    torch.testing.assert_close(logits(pooled), logits(model), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_each_head_is_the_mean_of_its_neighbours_and_all_else_is_copied(model, n_kv_heads):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pooled, group = pool_kv_heads(model, n_kv_heads), 4 // n_kv_heads
    for after, whole in zip(projections(pooled), projections(model), strict=True):
        for mine, theirs in zip(after.parameters(), whole.parameters(), strict=True):
            for row in range(n_kv_heads * 8):
                head, within = divmod(row, 8)
                rows = [theirs[(head * group + member) * 8 + within] for member in range(group)]
                torch.testing.assert_close(mine[row], sum(rows) / group, rtol=0, atol=1e-14)
    for name, weight in pooled.state_dict().items():
        if "k_proj" not in name and "v_proj" not in name:
            assert torch.equal(weight, before[name]) and weight.data_ptr() != model.state_dict()[name].data_ptr(), name
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_the_bytes_of_the_cache_fall_with_the_heads(n_kv_heads):
    torch.manual_seed(0)
    model = BUILD["llama"]().eval()
    pooled = pool_kv_heads(model, n_kv_heads)
    caches = [build("full", of, headroom=1) for of in (model, pooled)]
    for of, cache in zip((model, pooled), caches, strict=True):
        with torch.inference_mode(), cache.attached(of):
            of(IDS, past_key_values=cache, use_cache=True, **cache.attention_kwargs)
    whole, fewer = (cache.bytes_logical for cache in caches)
    assert fewer * 4 == whole * n_kv_heads > 0


def test_the_result_trains_and_its_tied_weights_stay_tied():
    torch.manual_seed(0)
    pooled = pool_kv_heads(BUILD["llama_tied"]().train(), 2)
    assert pooled.training and pooled.get_output_embeddings().weight is pooled.get_input_embeddings().weight
    pooled(IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pooled.parameters())


def test_the_result_is_saved_and_loaded(model, tmp_path):
    pooled = pool_kv_heads(model, 1)
    pooled.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert loaded.config.num_key_value_heads == 1
    assert torch.equal(logits(loaded), logits(pooled))


@pytest.mark.parametrize("n_kv_heads", [0, -1, 3, 8])
def test_groups_that_are_not_equal_are_refused(n_kv_heads):
    model = BUILD["llama"]()
    with pytest.raises(ValueError, match=rf"^n_kv_heads={n_kv_heads}: 4 KV heads .*; valid: 1, 2, 4$"):
        pool_kv_heads(model, n_kv_heads)


def test_grouped_heads_are_pooled_further():
    assert pool_kv_heads(family("mistral"), 1).config.num_key_value_heads == 1


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCAB)), "no k_proj and v_proj"),
        (lambda: Olmo2ForCausalLM(Olmo2Config(**SHAPE)), r"k_norm\.weight spans several KV heads"),
    ],
)
def test_models_with_other_projections_are_refused_in_one_line(other, why):
    with pytest.raises(ValueError, match=rf"^model=\w+: .*{why}.*; valid: .*$"):
        pool_kv_heads(other(), 1)
