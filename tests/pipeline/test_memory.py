import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from pipeline import memory
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


@pytest.mark.parametrize(("strategy", "kv_budget", "kv_len"), [("full", None, 48), ("sliding_window", 16, 16)])
def test_predicted_kv_bytes_are_those_held_within_the_bookkeeping(
    strategy: str, kv_budget: int | None, kv_len: int
) -> None:
    predicted = memory.predict(model(), 0, seq_len=40, batch=3, kv_len=kv_len, ceilings=CEILINGS)
    with arm(strategy, kv_budget)(8) as decoder:
        decoder.feed(tokens(3, 40))
        decoder.teacher_force(tokens(3, 8))
    assert decoder.kv_bytes_logical == pytest.approx(predicted.kv_bytes_held, rel=0.1)
    assert predicted.kv_bytes_held <= decoder.kv_bytes_held <= 1.1 * predicted.kv_bytes_held


def test_prefill_flop_is_what_torch_counts() -> None:
    seq_len, batch = 64, 2
    # Only the plain kernel shows its products to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, arm("no_cache")(0) as decoder:
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
    weight_bytes = sum(p.nbytes for p in built.parameters())
    layers = sum(p.nbytes for name, p in built.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert memory.weight_bytes_per_step(built, weight_bytes) == layers + n_tables_read * 1000 * 32 * 4


def test_floor_is_bytes_over_bandwidth_and_flop_over_speed() -> None:
    predicted = memory.predict(model(), 10**6, seq_len=32, batch=1, kv_len=32, ceilings=CEILINGS)
    assert predicted.decode_floor_s == predicted.decode_bytes_per_step / 1e9
    assert predicted.prefill_floor_s == predicted.prefill_flop / 1e12


def test_ceilings_are_measured_once_and_of_a_plausible_size() -> None:
    first = memory.measured_ceilings(torch.float32, "cpu")
    assert memory.measured_ceilings(torch.float32, "cpu") is first
    assert 1e8 < first.copy_bandwidth_bytes_per_s < 1e14
    assert 1e8 < first.matmul_flop_per_s < 1e16


def test_peak_counts_memory_that_was_given_back_before_the_end() -> None:
    size = 64 << 20

    def run() -> None:
        torch.ones(size // 4).sum()

    growths = [memory.peak_growth(run, "cpu") for _ in range(2)]  # the second may be given the first one's pages
    if None in growths:
        pytest.skip("this system does not tell a process's peak memory")
    assert all(growth is not None and 0.9 * size < growth < 1.5 * size for growth in growths)


def test_peak_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", memory.Path(str(tmp_path)) / "missing" / "clear_refs")
    ran: list[int] = []
    assert memory.peak_growth(lambda: ran.append(1), "cpu") is None
    assert ran == [1]
