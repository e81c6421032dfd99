"""Absorbed decode equals expanded decode, and what is held is what the formula says."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from pipeline.decoding import Decoder
from strategies.foreign.dynamic import StockDynamicCache
from strategies.model.latent import LatentCache, is_latent

VOCAB, N_LAYERS, LATENT, ROTATED = 97, 3, 12, 4
N_PROMPT, HEADROOM = 40, 64  # more queries than absorbing pays for, and room for all that follows

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": N_LAYERS, "kv_lora_rank": LATENT,
    "qk_rope_head_dim": ROTATED, "qk_nope_head_dim": 8, "v_head_dim": 6, "initializer_range": 0.3,
    "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip

MODELS: dict[str, Any] = {
    "v3": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SHAPE, q_lora_rank=None)),
    "v3_latent_query": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SHAPE, q_lora_rank=10)),
    "v3_half_rotation": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**SHAPE, q_lora_rank=None, rope_interleave=False)
    ),
    "v2": lambda: DeepseekV2ForCausalLM(DeepseekV2Config(**SHAPE, q_lora_rank=None)),
    "v2_latent_query": lambda: DeepseekV2ForCausalLM(DeepseekV2Config(**SHAPE, q_lora_rank=10)),
}
every_model = pytest.mark.parametrize("name", MODELS)


@cache
def built(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def tokens(batch: int, n_tokens: int) -> Tensor:
    return torch.randint(VOCAB, (batch, n_tokens), generator=torch.Generator().manual_seed(0))


def fed(model: PreTrainedModel, held: Any, ids_BT: Tensor, lengths: list[int]) -> Tensor:
    """Logits [B, T, V] of `ids_BT`, fed in pieces of these lengths."""
    with Decoder(model, held) as decoder:
        return torch.cat([decoder.feed(piece, all_logits=True) for piece in ids_BT.split(lengths, dim=1)], dim=1)


# A prompt, then steps; a long and a short continuation; a prompt that is short enough to be absorbed.
CUTS = [[N_PROMPT, *[1] * 20], [N_PROMPT, 17, 3], [3, 1, 1, 50, 5]]


@every_model
@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_absorbed_equals_expanded_in_float64(name: str, lengths: list[int]) -> None:
    model, ids = built(name), tokens(2, 60)
    expanded = fed(model, StockDynamicCache(config=model.config), ids, lengths)
    torch.testing.assert_close(fed(model, LatentCache(model, HEADROOM), ids, lengths), expanded, rtol=0, atol=1e-10)
    with torch.inference_mode():
        tolerance = 1e-10 if name.startswith("v3") else 1e-5  # DeepSeek-V2 of Transformers rotates in float32
        torch.testing.assert_close(expanded, model(ids, use_cache=False).logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str)
@pytest.mark.parametrize("name", ["v3", "v2"])
def test_absorbed_equals_expanded_in_lower_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, ids = built(name, dtype), tokens(2, 60)
    expanded, absorbed = (
        fed(model, held, ids, CUTS[0])
        for held in (StockDynamicCache(config=model.config), LatentCache(model, HEADROOM))
    )
    assert (absorbed - expanded).abs().max() <= tolerance * expanded.abs().max()


@every_model
def test_greedy_tokens_are_those_without_a_cache(name: str) -> None:
    model, ids = built(name), tokens(1, N_PROMPT)
    decoded, last = ids, ids
    with Decoder(model, LatentCache(model, HEADROOM)) as decoder:
        for _ in range(64):
            last = decoder.feed(last).argmax(-1, keepdim=True)
            decoded = torch.cat([decoded, last], dim=1)
    with torch.inference_mode():
        again = model(decoded, use_cache=False).logits.argmax(-1)
    assert decoded[:, N_PROMPT:].equal(again[:, N_PROMPT - 1 : -1])
    assert len(decoded[0, N_PROMPT:].unique()) > 8  # of so many different tokens, one alone would prove little


@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_are_those_of_the_formula_and_the_headroom(batch: int) -> None:
    model = built("v3")
    held = LatentCache(model, HEADROOM)
    assert held.bytes_held == held.bytes_logical == 0
    n_tokens = N_PROMPT + 5
    fed(model, held, tokens(batch, n_tokens), [N_PROMPT, 1, 1, 1, 1, 1])
    per_token = (LATENT + ROTATED) * N_LAYERS * batch * 8
    assert held.bytes_logical == n_tokens * per_token
    assert held.bytes_held == (N_PROMPT + HEADROOM) * per_token


def test_beyond_its_headroom_it_makes_room_again() -> None:
    model, ids = built("v3"), tokens(2, 50)
    held = LatentCache(model, headroom=3)
    got = fed(model, held, ids, [N_PROMPT, *[1] * 10])
    with torch.inference_mode():
        torch.testing.assert_close(got, model(ids, use_cache=False).logits, rtol=0, atol=1e-10)
    assert held.bytes_held - held.bytes_logical <= 3 * held.bytes_logical // 50


def test_a_step_writes_in_place() -> None:
    model, ids = built("v3"), tokens(1, N_PROMPT + 9)
    held = LatentCache(model, HEADROOM)
    with Decoder(model, held) as decoder:
        decoder.feed(ids[:, :N_PROMPT])
        before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in held.layers]
        decoder.teacher_force(ids[:, N_PROMPT:])
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in held.layers] == before


def test_no_step_expands_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = built("v3"), tokens(1, N_PROMPT + 4)
    attention = type(model.model.layers[0].self_attn)
    expanded: list[int] = []
    expand = attention.expand_kv
    monkeypatch.setattr(
        attention, "expand_kv", lambda self, *held: expanded.append(held[0].shape[2]) or expand(self, *held)
    )
    with Decoder(model, LatentCache(model, HEADROOM)) as decoder:
        decoder.feed(ids[:, :N_PROMPT])
        assert expanded == [N_PROMPT] * N_LAYERS
        decoder.teacher_force(ids[:, N_PROMPT:])
    assert expanded == [N_PROMPT] * N_LAYERS


def test_rows_of_a_batch_are_what_they_are_alone() -> None:
    model, ids = built("v3"), tokens(4, 50)
    lengths = [N_PROMPT, *[1] * 10]
    alone = torch.cat([fed(model, LatentCache(model, HEADROOM), row, lengths) for row in ids.split(1)])
    torch.testing.assert_close(fed(model, LatentCache(model, HEADROOM), ids, lengths), alone, rtol=0, atol=1e-10)


def test_reset_leaves_nothing_behind() -> None:
    model, ids = built("v3"), tokens(2, 50)
    held = LatentCache(model, HEADROOM)
    fed(model, held, ids, [N_PROMPT, 10])
    held.reset()
    assert held.get_seq_length() == held.bytes_held == held.bytes_logical == 0
    fresh = LatentCache(model, HEADROOM)
    other = tokens(3, 45).flip(1)  # another batch, and shorter
    assert fed(model, held, other, [N_PROMPT, 5]).equal(fed(model, fresh, other, [N_PROMPT, 5]))


def test_a_copy_goes_its_own_way() -> None:
    model, ids = built("v3"), tokens(2, 50)
    held = LatentCache(model, HEADROOM)
    fed(model, held, ids[:, :N_PROMPT], [N_PROMPT])
    twin = copy.deepcopy(held)
    assert twin.bytes_held == held.bytes_held
    fed(model, twin, ids[:, N_PROMPT:].flip(1), [1] * 10)
    assert held.get_seq_length() == N_PROMPT
    got = fed(model, held, ids[:, N_PROMPT:], [1] * 10)
    assert got.equal(fed(model, LatentCache(model, HEADROOM), ids, [N_PROMPT, *[1] * 10])[:, N_PROMPT:])


def test_reordered_rows_continue_what_they_now_are() -> None:
    model, ids = built("v3"), tokens(3, 50)
    held, order = LatentCache(model, HEADROOM), torch.tensor([2, 0, 2, 1])
    fed(model, held, ids[:, :N_PROMPT], [N_PROMPT])
    held.reorder_cache(order)
    got = fed(model, held, ids[order, N_PROMPT:], [1] * 10)
    expected = fed(model, LatentCache(model, HEADROOM), ids[order], [N_PROMPT, *[1] * 10])
    torch.testing.assert_close(got, expected[:, N_PROMPT:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", ["v3", "v2"])
def test_generate_gives_the_stock_tokens(name: str, how: dict[str, int]) -> None:
    model, ids = built(name), tokens(2, N_PROMPT)
    held = LatentCache(model, HEADROOM)
    with held.attached(model):
        got = model.generate(ids, past_key_values=held, max_new_tokens=16, do_sample=False, **how)
    assert got.equal(model.generate(ids, max_new_tokens=16, do_sample=False, **how))
    assert held.get_seq_length() == N_PROMPT + 15


def test_the_model_comes_back_unchanged() -> None:
    model, ids = built("v3"), tokens(1, N_PROMPT)
    before = [dict(vars(module)) for module in model.modules()]
    implementation = model.config._attn_implementation
    outer, inner = LatentCache(model), LatentCache(model)
    with pytest.raises(KeyError), outer.attached(model):  # an error gives it back as well
        with inner.attached(model):
            model(ids, past_key_values=inner)
        model(ids, past_key_values=outer)
        assert outer.layers[2].held()[0].equal(inner.layers[2].held()[0])
        raise KeyError
    assert model.config._attn_implementation == implementation
    assert [vars(module).keys() for module in model.modules()] == [each.keys() for each in before]


def test_without_attaching_the_model_expands_and_is_right() -> None:
    model, ids = built("v3"), tokens(2, 50)
    held = LatentCache(model, HEADROOM)
    with torch.inference_mode():
        first = model(ids[:, :N_PROMPT], past_key_values=held).logits
        second = model(ids[:, N_PROMPT:], past_key_values=held).logits
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, rtol=0, atol=1e-10)


def test_shapes_alone_are_enough_to_count_it() -> None:
    with torch.device("meta"):
        model = MODELS["v3"]().eval()
    held = LatentCache(model, HEADROOM)
    with Decoder(model, held) as decoder:
        decoder.feed(torch.zeros(2, N_PROMPT, dtype=torch.long, device="meta"))
        decoder.feed(torch.zeros(2, 1, dtype=torch.long, device="meta"))
    assert held.bytes_logical == (N_PROMPT + 1) * (LATENT + ROTATED) * N_LAYERS * 2 * 4


def test_what_cannot_be_is_refused() -> None:
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                         num_attention_heads=4))  # fmt: skip
    assert not is_latent(llama) and is_latent(built("v3"))
    with pytest.raises(ValueError, match=r"^model=LlamaForCausalLM: .*valid: "):
        LatentCache(llama)
    with pytest.raises(ValueError, match=r"^headroom=0: .*valid: "):
        LatentCache(built("v3"), headroom=0)
    quantised = copy.deepcopy(built("v3"))
    weight = quantised.model.layers[1].self_attn.kv_b_proj
    weight.weight = torch.nn.Parameter(weight.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"^model=.*quantised.*valid: "):
        LatentCache(quantised)
    held = LatentCache(built("v3"))
    fed(built("v3"), held, tokens(1, 8), [8])
    with pytest.raises(ValueError, match=r"^crop\(-3\): "):
        held.crop(-3)
    padding = torch.ones(2, 8, dtype=torch.long)
    padding[0, 0] = 0
    with held.attached(built("v3")) as attached, pytest.raises(ValueError, match="padding"):
        attached.reset()
        built("v3")(tokens(2, 8), attention_mask=padding, past_key_values=attached)
