from collections.abc import Callable

import pytest
import torch
from hydra.utils import instantiate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from pipeline.decoding import Decoder
from pipeline.memory import costs
from pipeline.memory.measured import Ceilings
from pipeline.record import Predicted
from tests.pipeline.small import arm, model, tokens
from tests.strategies import techniques

CEILINGS = Ceilings(copy_bandwidth_bytes_per_s=1e9, matmul_flop_per_s=1e12)


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        (GPT2Config(n_layer=36, n_head=20, n_embd=1280), torch.float32, 368_640),
        (LlamaConfig(num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, hidden_size=8192),
         torch.float16, 327_680),
        (LlamaConfig(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, head_dim=128),
         torch.bfloat16, 524_288),
    ],
    ids=["gpt2_large", "llama_2_70b", "llama_2_7b"],
)  # fmt: skip
def test_kv_bytes_of_published_shapes(config: object, dtype: torch.dtype, expected: int) -> None:
    assert costs.kv_bytes_per_token(config, dtype) == expected


SHAPE = {"seq_len": 40, "batch": 3, "n_new_tokens": 8}
KEEPS_ALL = costs.estimated(model(), None, **SHAPE)


def predicted_at(seq_len: int = 40, cache: costs.Footprint | None = KEEPS_ALL) -> Predicted:
    return costs.predict(model(), cache, seq_len=seq_len, batch=3, ceilings=CEILINGS)


def outlined() -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model().config, dtype=model().dtype)


def made_to_fit(strategy: str, of: PreTrainedModel) -> Callable[[int], Decoder]:
    build = instantiate(techniques.config(strategy).strategy.cache)
    kv_budget = techniques.BUDGET if techniques.evicts(strategy) else None
    return lambda headroom: Decoder(of, build(model=of, kv_budget=kv_budget, headroom=headroom))


HELD_IN_TURN = ("full", "no_cache", "h2o", "snapkv", "kv_int4", "pyramidkv_kivi", "oracle", "hf_dynamic", "hf_sliding")


@pytest.mark.parametrize("strategy", HELD_IN_TURN)
def test_what_a_cache_takes_is_known_without_weights_or_numbers(strategy: str) -> None:
    prompt, stream = tokens(3, 40), tokens(3, 8)
    found = costs.footprint(made_to_fit(strategy, outlined()), **SHAPE)
    kept = []
    with made_to_fit(strategy, model())(8) as decoder:
        decoder.foresee(torch.cat([prompt, stream], dim=1), 40)
        decoder.feed(prompt)
        for token in stream.split(1, dim=1):
            decoder.feed(token)
            kept.append(decoder.kv_bytes_logical)
    if decoder.cache is None:
        assert found is None
    else:
        assert found is not None
        # Codes are written a group at a time, which one step does not show.
        assert found.logical == pytest.approx(kept[3], rel=0.1 if "kivi" in strategy else 0)
        assert found.held == decoder.kv_bytes_held


def test_prefill_flop_is_what_torch_counts() -> None:
    seq_len, batch = 64, 2
    # Only the plain kernel shows its products to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, arm("no_cache")(1) as decoder:
        decoder.feed(tokens(batch, seq_len))
    config = model().config
    attention = 2 * config.num_hidden_layers * seq_len**2 * config.num_attention_heads * config.head_dim * batch
    norms = 2 * batch * seq_len * sum(p.numel() for p in model().parameters() if p.dim() == 1)
    # The angles of the positions are a product in Transformers 5.17, and later none.
    angles = sum(counter.get_flop_counts().get("LlamaForCausalLM.model.rotary_emb", {}).values())
    # torch counts every entry of the attention matrix; causally, half of them are needed.
    assert costs.prefill_flop(model(), seq_len, batch) - norms == counter.get_total_flops() - angles - attention


@pytest.mark.parametrize(("tied", "n_tables_read"), [(True, 1), (False, 1)])
def test_a_step_reads_one_table_of_the_vocabulary(tied: bool, n_tables_read: int) -> None:
    config = LlamaConfig(vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=tied)  # fmt: skip
    built = AutoModelForCausalLM.from_config(config)
    layers = sum(p.nbytes for name, p in built.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert costs.weight_bytes_per_step(built) == layers + n_tables_read * 1000 * 32 * 4


def test_floor_is_bytes_over_bandwidth_and_flop_over_speed() -> None:
    predicted = predicted_at()
    assert predicted.decode_floor_s == predicted.decode_bytes_per_step / 1e9
    assert predicted.prefill_floor_s == predicted.prefill_flop / 1e12


@pytest.mark.parametrize(("kv_budget", "n_held"), [(None, 44), (16, 16), (42, 42)])
def test_where_shapes_depend_on_data_a_step_reads_the_budget(kv_budget: int | None, n_held: int) -> None:
    predicted = predicted_at(cache=costs.estimated(model(), kv_budget, **SHAPE))
    weights = costs.weight_bytes_per_step(model())
    assert predicted.decode_bytes_per_step == weights + 3 * n_held * predicted.kv_bytes_per_token


def test_a_step_that_recomputes_is_no_faster_than_a_prefill() -> None:
    short, long = predicted_at(seq_len=1, cache=None), predicted_at(seq_len=4096, cache=None)
    assert short.kv_bytes_held == long.kv_bytes_held == 0
    assert short.decode_floor_s == short.decode_bytes_per_step / 1e9 > short.prefill_floor_s
    assert long.decode_floor_s == long.prefill_floor_s > long.decode_bytes_per_step / 1e9


def test_a_model_without_weights_gives_the_same_prediction() -> None:
    assert costs.predict(outlined(), KEEPS_ALL, seq_len=40, batch=3, ceilings=CEILINGS) == predicted_at()
