"""Every combination of shipped parts composes, or is refused with a reason that names both axes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tests.strategies.models import family, prompt
from tests.strategies.techniques import BUDGET, CONF
from tests.strategies.test_laws import mean_held, stream

AXES = ("scorer", "allocation", "schedule", "on_evict", "encoding", "sharing", "placement")
PARTS = {axis: sorted(path.stem for path in (CONF / "strategy" / axis).glob("*.yaml")) for axis in AXES}
NOTHING_TO_DO = {"schedule": "never", "placement": "recompute"}  # these take no budget
MATRIX = [
    dict(zip(AXES, parts, strict=True))
    for parts in product(*([part for part in PARTS[axis] if part != NOTHING_TO_DO.get(axis)] for axis in AXES))
]
REFUSED = [
    ("scorer=SnapKVScorer", "schedule="),
    ("scorer=OracleScorer", "schedule="),
]


@pytest.mark.parametrize("parts", MATRIX, ids=lambda parts: "-".join(parts.values()))
def test_every_combination_composes_or_says_which_axes_do_not_go_together(parts: dict[str, str]) -> None:
    overrides = [f"strategy/{axis}={part}" for axis, part in parts.items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        strategy = compose("config", ["strategy=sliding_window", *overrides]).strategy
        if strategy.scorer.get("window_size", 0) >= BUDGET:
            strategy.scorer.window_size = 8
    model, ids = family("llama"), prompt(2, 60)
    try:
        cache = instantiate(strategy.cache)(model=model, kv_budget=BUDGET)
    except ValueError as refusal:
        assert any(all(axis in str(refusal) for axis in pair) for pair in REFUSED), refusal
        return
    assert torch.isfinite(stream(model, cache, ids, n_prompt=40)).all()
    most = BUDGET + {"at_prefill": 20, "every_n_steps": 31}.get(parts["schedule"], 0)
    assert BUDGET <= mean_held(cache) <= most
    assert cache.get_seq_length() == 60
    assert 0 < cache.bytes_logical <= cache.bytes_held
