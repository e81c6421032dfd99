"""The list of techniques is the folder of their configs: a new one joins every law by being there."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import PreTrainedModel

from strategies.cache import SlotCache

_CONF = Path(__file__).parents[2] / "conf"
ALL = sorted(path.stem for path in (_CONF / "strategy").glob("*.yaml"))


@cache
def config(technique: str) -> Any:
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        return compose("config", [f"strategy={technique}", "profile=cpu"])


def evicts(technique: str) -> bool:
    return config(technique).strategy.keep_ratio is not None


FOREIGN = [name for name in ALL if ".foreign." in config(name).strategy.cache._target_]
OURS = [name for name in ALL if name not in FOREIGN]
CACHED = [name for name in OURS if "recompute" not in str(config(name).strategy.placement)]
EVICTING = [name for name in OURS if evicts(name)]


def build(technique: str, model: PreTrainedModel, kv_budget: int = 24, headroom: int = 8) -> SlotCache:
    """A cache of the technique; one that keeps everything ignores the budget."""
    budget = kv_budget if evicts(technique) else None
    cache = instantiate(config(technique).strategy.cache)(model=model, kv_budget=budget, headroom=headroom)
    assert isinstance(cache, SlotCache)
    return cache
