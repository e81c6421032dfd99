"""The kept sets are those of kvpress, another implementation, on the same model and prompt.

Where the defaults differ: kvpress observes with 64 queries (here 32), protects nothing for mean attention (here the
newest token, which every step adds), and counts a pyramid's budgets in its own way: they are taken from it here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM

from tests.strategies.techniques import CONF

FIXTURES = Path(__file__).parent / "fixtures"  # the weights too: those of the embedded model change when it is trained
FIXTURE: dict[str, Any] = json.loads((FIXTURES / "kvpress.json").read_text())
OURS = {
    "attention_sink": [],
    "knorm": [],
    "mean_attention": ["strategy.scorer.window_size=0"],
    "tova": [],
    "snapkv": ["strategy.scorer.window_size=64"],
    "pyramidkv": [f"strategy.scorer.window_size={FIXTURE['window']}"],
}


class Injected:
    """An allocation that was made elsewhere."""

    def __init__(self, budgets: list[int]) -> None:
        self.budgets = budgets

    def __call__(self, kv_budget: int, n_layers: int, *, n_tokens: int | None, n_protected: int) -> list[int]:
        return self.budgets


@pytest.mark.parametrize("technique", FIXTURE["kept"])
def test_the_same_tokens_are_kept(technique: str) -> None:
    expected = FIXTURE["kept"][technique]
    budgets = [len(heads[0]) for heads in expected]
    assert technique != "pyramidkv" or len(set(budgets)) == len(budgets)
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / "kvpress_model", dtype=torch.float32).eval()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        strategy = compose("config", [f"strategy={technique}", *OURS[technique]]).strategy
    build = instantiate(strategy.cache)
    cache = build(model=model, kv_budget=sum(budgets) // len(budgets), allocation=Injected(budgets))
    with torch.inference_mode(), cache.attached(model):
        model(torch.tensor([FIXTURE["prompt"]]), past_key_values=cache)
    for layer, heads in zip(cache.layers, expected, strict=True):
        positions = layer.positions[0, :, : layer.n_held].sort(-1).values
        assert positions.expand(len(heads), -1).tolist() == heads
