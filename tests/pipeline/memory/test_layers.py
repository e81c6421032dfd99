"""What a configuration alone says about its layers is what the caches of the architectures really hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig

from pipeline.decoding import Decoder
from pipeline.memory.costs import kv_bytes_per_token, prefill_flop
from pipeline.memory.layers import attention_layers
from pipeline.shapes import config_of, random_model
from tests.pipeline.small import arm, composed

ARCHITECTURES = ("mha", "gqa", "mqa", "mla", "sliding", "local_global", "longformer", "strided", "dilated", "lsh",
                 "hybrid_ssm")  # fmt: skip
N_PROMPT, BATCH = 700, 2
GROWS = {"mha": 4, "gqa": 4, "mqa": 4, "mla": 4, "sliding": 0, "local_global": 1, "longformer": 0, "strided": 4,
         "dilated": 0, "lsh": 2, "hybrid_ssm": 1}  # layers that hold every token  # fmt: skip


def config(name: str) -> Any:
    return config_of(composed(f"model={name}", "workload=cost").model)


def native(name: str, *, n_prompt: int = N_PROMPT, headroom: int = 2000) -> tuple[Decoder, Any]:
    """Fed with a prompt; on the meta device, where a cache is as large and computes nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32).eval()
    decoder = arm("native", of=model)(headroom)
    with decoder:
        decoder.feed(torch.zeros(BATCH, n_prompt, dtype=torch.long, device="meta"))
    return decoder, model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_token_more_takes_what_the_layers_that_hold_every_token_say(name: str) -> None:
    decoder, model = native(name)
    before = decoder.kv_bytes_logical
    with decoder:
        decoder.feed(torch.zeros(BATCH, 1, dtype=torch.long, device="meta"))
    per_token = kv_bytes_per_token(model.config, torch.float32)
    assert decoder.kv_bytes_logical - before == BATCH * per_token
    assert sum(layer.window is None for layer in attention_layers(model.config)) == GROWS[name]
    assert (per_token > 0) == (GROWS[name] > 0)


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa", "mla", "sliding", "local_global", "longformer", "lsh"])
@pytest.mark.parametrize("n_prompt", [40, N_PROMPT])
def test_what_all_layers_hold_is_the_sum_of_their_tokens(name: str, n_prompt: int) -> None:
    decoder, model = native(name, n_prompt=n_prompt)
    layers = attention_layers(model.config)
    held = sum(layer.bytes_per_token(torch.float32) * layer.n_held(n_prompt) for layer in layers)
    assert decoder.kv_bytes_logical == BATCH * held


def test_a_state_is_no_attention() -> None:
    decoder, model = native("hybrid_ssm")
    (attention,) = attention_layers(model.config)
    state = decoder.kv_bytes_logical - BATCH * N_PROMPT * attention.bytes_per_token(torch.float32)
    later, _ = native("hybrid_ssm", n_prompt=2 * N_PROMPT)
    assert 0 < state == later.kv_bytes_logical - BATCH * 2 * N_PROMPT * attention.bytes_per_token(torch.float32)


@pytest.mark.parametrize("name", ["longformer", "bigbird", "strided", "dilated"])
def test_pairs_of_a_pattern_are_those_that_its_definition_shows(name: str) -> None:
    position = torch.arange(300)
    for layer in attention_layers(config(name)):
        assert layer.pattern is not None
        assert layer.n_pairs(300) == int(layer.pattern.visible(position[:, None], position[None]).sum())


def test_pairs_of_a_window_are_those_of_a_band_with_half_of_its_edges() -> None:
    """As T² / 2 counts half of the diagonal, so does a band: of its first and of its last diagonal."""
    layer = attention_layers(config("sliding"))[0]
    inside = torch.ones(300, 300).tril(-1).triu(1 - 64).sum()
    assert layer.n_pairs(300) == inside + 300 / 2 + (300 - 64) / 2
    assert layer.n_pairs(64) == 64**2 / 2


@pytest.mark.parametrize("name", ["mla", "hybrid_ssm", "gqa"])
def test_what_grows_with_the_square_of_a_prompt_is_what_torch_counts(name: str) -> None:
    """Torch counts every entry of the attention matrix; causally, half of them are needed."""
    n_tokens = 64
    model = random_model(config(name), torch.float32, "cpu", seed=0).eval()
    counted = _counted(model, 2 * n_tokens) - 2 * _counted(model, n_tokens)
    ours = prefill_flop(model, 2 * n_tokens, 1) - 2 * prefill_flop(model, n_tokens, 1)
    head = 2 * model.get_output_embeddings().weight.numel()  # once, however long the prompt is
    # The recurrence that Transformers falls back to passes its states from each piece to every later one.
    assert ours + head == pytest.approx((counted + head) / 2, rel=0.1 if name == "hybrid_ssm" else 0)


def _counted(model: Any, n_tokens: int) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, arm("no_cache", of=model)(1) as own:
        own.feed(torch.zeros(1, n_tokens, dtype=torch.long))
    return counter.get_total_flops()


def test_of_experts_a_prefill_computes_those_that_a_token_goes_to() -> None:
    def flop(n_experts: int, n_used: int) -> float:
        shape = MixtralConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=2, num_local_experts=n_experts,
                              num_experts_per_tok=n_used)  # fmt: skip
        with torch.device("meta"):
            return prefill_flop(AutoModelForCausalLM.from_config(shape), 16, 1)

    router = 2 * 16 * 32 * 2  # of each expert, both layers
    assert flop(8, 2) - 8 * router == flop(4, 2) - 4 * router
    assert flop(8, 4) - flop(8, 2) == 2 * 16 * 2 * 2 * 3 * 32 * 64
