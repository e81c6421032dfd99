"""A technique in a few lines of somebody else's program, as the README shows it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from pipeline import ROOT
from pipeline.library import build_cache
from tests.strategies.models import family, prompt


def readme_snippet() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "build_cache" in block)


def test_the_snippet_of_the_readme_runs_and_holds_what_it_says():
    model = family("llama")
    names = {"model": model, "input_ids": prompt(1, 40)}
    exec(readme_snippet(), names)
    cache = names["cache"]
    assert names["output"].shape[1] > 40
    assert all(layer.n_held <= 32 for layer in cache.layers)
    assert 0 < cache.bytes_logical <= cache.bytes_held
    assert model.config._attn_implementation != "slot_cache"  # given back


def test_it_needs_nothing_of_the_pipeline_to_be_imported_before():
    program = (
        "from transformers import LlamaConfig, LlamaForCausalLM;"
        "from pipeline.library import build_cache;"
        "shape = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1);"
        "print(type(build_cache('sliding_window', LlamaForCausalLM(LlamaConfig(**shape)), kv_budget=4)).__name__)"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "SlotCache"


def test_parts_are_overridden_as_on_the_command_line():
    cache = build_cache("attention_sink", family("llama"), "strategy.scorer.n_sinks=8", kv_budget=24)
    assert cache.layers[0].retention.scorer.n_sinks == 8


def test_the_full_cache_by_name_gives_the_stock_tokens():
    model, ids = family("qwen3"), prompt(2, 20)
    cache = build_cache("full", model)
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, model.generate(ids, max_new_tokens=8, do_sample=False))


@pytest.mark.parametrize(("technique", "kv_budget"), [("hf_dynamic", None), ("hf_static", None), ("hf_sliding", 64)])
def test_a_cache_of_another_package_is_used_in_the_same_lines(technique, kv_budget):
    model, ids = family("llama"), prompt(2, 20)
    cache = build_cache(technique, model, kv_budget=kv_budget)
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, model.generate(ids, max_new_tokens=8, do_sample=False))
    assert 0 < cache.bytes_logical <= cache.bytes_held and cache.get_seq_length() == 27


def test_a_package_or_a_device_that_is_not_here_is_named():
    with pytest.raises(ImportError, match=r"needs transformers<5\.3"):
        build_cache("kvpress", family("llama"), kv_budget=8)
    with pytest.raises(NotImplementedError, match="valid: device=cuda"):
        build_cache("hf_offloaded", family("llama"))


@pytest.mark.parametrize(
    ("technique", "kv_budget", "named"),
    [
        ("snapkvv", 8, "technique=snapkvv: unknown; valid: .*sliding_window"),
        ("sliding_window", None, "kv_budget=None: .*tokens per KV head"),
        ("full", 8, "kv_budget=8: .*keeps everything"),
        ("hf_static", 8, "kv_budget=8: .*keeps everything"),
        ("hf_sliding", None, "kv_budget=None: .*tokens per KV head"),
        ("no_cache", None, "technique=no_cache: holds nothing"),
        ("attention_sink", 4, "kv_budget=4: .*more than 4"),
    ],
)
def test_what_cannot_be_is_refused_by_name(technique, kv_budget, named):
    with pytest.raises(ValueError, match=named):
        build_cache(technique, family("llama"), kv_budget=kv_budget)
