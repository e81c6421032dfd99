"""The real engine, where `make vllm` has built its environment: its greedy tokens are those of Transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from transformers import PreTrainedModel

from pipeline.engines import agreement, vllm
from pipeline.engines.hf_generate import HFGenerate
from pipeline.engines.vllm import VLLM
from tests.pipeline.engines import small

POOL = {"kv_cache_memory_bytes": 1 << 24, "block_size": 32, "max_model_len": 256, "max_num_seqs": 8}
built = pytest.mark.skipif(
    not (vllm.ENVIRONMENT / "bin/python").exists(), reason=f"vLLM is not installed; {vllm.REMEDY}"
)


def test_a_missing_environment_names_the_one_command(tmp_path: Path) -> None:
    engine = VLLM(small.loaded(small.gpt2(), tmp_path), **POOL, python=tmp_path / ".venv-vllm/bin/python")
    with pytest.raises(ImportError, match=r"there is no \.venv-vllm with vLLM in it; valid: make vllm"):
        engine.start()


@built
@pytest.mark.slow
@pytest.mark.parametrize("model", [small.gpt2, small.llama], ids=["gpt2", "llama"])
def test_greedy_tokens_are_those_of_transformers(model: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    of = small.loaded(model(), tmp_path)
    engine = VLLM(of, **POOL, prefix_caching=True)
    try:
        engine.start()
        for asked in (small.ALIKE, small.MIXED):
            assert engine.serve(asked).tokens == HFGenerate(of).serve(asked).tokens
        served = engine.serve(small.ALIKE)
        assert served.blocks is not None and served.blocks.n_used == 4 * 2  # 24 + 11 tokens, 32 in a block
        assert served.kv_bytes_used == 8 * 32 * _bytes_per_token(of.model) <= served.kv_bytes_allocated <= 1 << 24
        assert all(times == sorted(times) and len(times) == 12 for times in served.token_s)
        alike = [small.Request([*small.MIXED[1].prompt[:33], number], 2) for number in range(3)]
        found = engine.serve(alike).blocks
        assert found is not None and found.n_prefix_hits == 2 * 32  # the first block of the second and the third
        arriving = engine.serve(small.ARRIVING)
        assert arriving.tokens == HFGenerate(of).serve(small.ARRIVING).tokens
        assert all(times[0] > one.arrival_s for times, one in zip(arriving.token_s, small.ARRIVING, strict=True))
        score = agreement.of_logits(engine, of, small.MIXED)
        assert score.tokens_equal == 1 and score.correlation == pytest.approx(1, abs=1e-4)
        assert score.kl == pytest.approx(0, abs=1e-4)
        assert _cpu_s(engine) < 0.3  # in a second in which nobody asks
    finally:
        engine.close()


def _bytes_per_token(model: PreTrainedModel) -> int:
    config = model.config
    n_kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 2 * config.num_hidden_layers * n_kv_heads * head_dim * 4


def _cpu_s(engine: VLLM) -> float:
    assert engine._worker is not None
    waiting = psutil.Process(engine._worker.pid)
    before = sum(waiting.cpu_times()[:2])
    time.sleep(1.0)
    return sum(waiting.cpu_times()[:2]) - before
