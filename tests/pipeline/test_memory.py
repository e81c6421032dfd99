from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from pipeline import memory
from pipeline.record import Predicted
from tests.pipeline.small import arm, model, tokens

CEILINGS = memory.Ceilings(copy_bandwidth_bytes_per_s=1e9, matmul_flop_per_s=1e12)


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
    assert memory.kv_bytes_per_token(config, dtype) == expected


def predicted_at(seq_len: int = 40, kv_budget: int | None = None, recomputes: bool = False) -> Predicted:
    return memory.predict(
        model(),
        seq_len=seq_len,
        batch=3,
        n_new_tokens=8,
        kv_budget=kv_budget,
        recomputes=recomputes,
        ceilings=CEILINGS,
    )


@pytest.mark.parametrize(("strategy", "kv_budget"), [("full", None), ("sliding_window", 16)])
def test_predicted_kv_bytes_are_those_held_within_the_bookkeeping(strategy: str, kv_budget: int | None) -> None:
    predicted = predicted_at(kv_budget=kv_budget)
    with arm(strategy, kv_budget)(8) as decoder:
        decoder.feed(tokens(3, 40))
        decoder.teacher_force(tokens(3, 8))
    assert decoder.kv_bytes_logical == pytest.approx(predicted.kv_bytes_held, rel=0.1)
    assert predicted.kv_bytes_held <= decoder.kv_bytes_held <= 1.1 * predicted.kv_bytes_held


def test_prefill_flop_is_what_torch_counts() -> None:
    seq_len, batch = 64, 2
    # Only the plain kernel shows its products to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, arm("no_cache")(1) as decoder:
        decoder.feed(tokens(batch, seq_len))
    config = model().config
    attention = 2 * config.num_hidden_layers * seq_len**2 * config.num_attention_heads * config.head_dim * batch
    norms = 2 * batch * seq_len * sum(p.numel() for p in model().parameters() if p.dim() == 1)
    # torch counts every entry of the attention matrix; causally, half of them are needed.
    assert memory.prefill_flop(model(), seq_len, batch) - norms == counter.get_total_flops() - attention


@pytest.mark.parametrize(("tied", "n_tables_read"), [(True, 1), (False, 1)])
def test_a_step_reads_one_table_of_the_vocabulary(tied: bool, n_tables_read: int) -> None:
    config = LlamaConfig(vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=tied)  # fmt: skip
    built = AutoModelForCausalLM.from_config(config)
    layers = sum(p.nbytes for name, p in built.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert memory.weight_bytes_per_step(built) == layers + n_tables_read * 1000 * 32 * 4


def test_floor_is_bytes_over_bandwidth_and_flop_over_speed() -> None:
    predicted = predicted_at()
    assert predicted.decode_floor_s == predicted.decode_bytes_per_step / 1e9
    assert predicted.prefill_floor_s == predicted.prefill_flop / 1e12


@pytest.mark.parametrize(("kv_budget", "n_held"), [(None, 44), (16, 16), (42, 42)])
def test_a_step_reads_what_is_held_half_way_through_decoding(kv_budget: int | None, n_held: int) -> None:
    predicted = predicted_at(kv_budget=kv_budget)
    weights = memory.weight_bytes_per_step(model())
    assert predicted.decode_bytes_per_step == weights + 3 * n_held * predicted.kv_bytes_per_token


def test_a_step_that_recomputes_is_no_faster_than_a_prefill() -> None:
    short, long = predicted_at(seq_len=1, recomputes=True), predicted_at(seq_len=4096, recomputes=True)
    assert short.kv_bytes_held == long.kv_bytes_held == 0
    assert short.decode_floor_s == short.decode_bytes_per_step / 1e9 > short.prefill_floor_s
    assert long.decode_floor_s == long.prefill_floor_s > long.decode_bytes_per_step / 1e9


def test_a_model_without_weights_gives_the_same_prediction() -> None:
    with torch.device("meta"):
        outlined = AutoModelForCausalLM.from_config(model().config, dtype=model().dtype)
    found = memory.predict(
        outlined, seq_len=40, batch=3, n_new_tokens=8, kv_budget=None, recomputes=False, ceilings=CEILINGS
    )
    assert found == predicted_at()


def test_ceilings_are_measured_once_and_of_a_plausible_size() -> None:
    first = memory.measured_ceilings(torch.float32, "cpu")
    assert memory.measured_ceilings(torch.float32, "cpu") is first
    assert 1e8 < first.copy_bandwidth_bytes_per_s < 1e14
    assert 1e8 < first.matmul_flop_per_s < 1e16


def test_peak_of_a_lap_counts_memory_that_was_given_back_before_its_end() -> None:
    size = 64 << 20

    def laps() -> Iterator[None]:
        torch.ones(size // 4).sum()
        yield
        held = torch.ones(size // 8)
        yield
        torch.ones(size // 16).add_(held.sum())
        yield

    found = [memory.peak_growths(laps(), "cpu") for _ in range(3)]
    for lap, expected in enumerate((size, size // 2, size // 2 + size // 4)):
        assert all(expected <= growths[lap] < 1.01 * expected for growths in found)
    assert found[0] == found[1] == found[2]


def test_what_was_there_before_the_first_lap_is_not_counted() -> None:
    before = [torch.ones(1000)]

    def laps() -> Iterator[None]:
        before.clear()
        torch.ones(100)
        yield

    (growth,) = memory.peak_growths(laps(), "cpu")
    assert growth < 1000


def test_counting_memory_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    memory.peak_growths((torch.ones(1000) for _ in range(2)), "cpu")
    assert tuple(capfd.readouterr()) == ("", "")
