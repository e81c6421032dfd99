"""The list of techniques is the folder of their configs: a new one joins every law by being there."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import PreTrainedModel

from strategies.cache import SlotCache
from strategies.token.contiguous import Contiguous
from tests.strategies.models import FAMILIES

CONF = Path(__file__).parents[2] / "conf"
ALL = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))


BUDGET = 24


@cache
def config(technique: str, *overrides: str) -> Any:
    """As published but for `overrides`; what is too large for the models and budget of the tests is made to fit."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        published = compose("config", [f"strategy={technique}", "profile=cpu", *overrides])
    for axis in ("scorer", "encoding", "on_evict", "placement"):
        if axis in published.strategy:
            fitted(axis, published.strategy[axis])
    return published


def fitted(axis: str, part: Any) -> Any:
    """A part as shipped, but for what the models and budget of the tests are too small for."""
    if axis == "scorer" and part.get("window_size", 0) >= BUDGET:
        part.window_size = 8
    if axis == "encoding" and "group_size" in part:
        part.group_size, part.n_recent = 4, 8
    if axis == "on_evict" and "n_first" in part:
        part.n_first = part.n_last = 0
    if axis == "placement" and "block_size" in part:
        part.block_size = 4
    return part


def evicts(technique: str) -> bool:
    return config(technique).strategy.keep_ratio is not None


def n_waiting(technique: str) -> int:
    """Tokens that may lie on top of the budget before the next eviction."""
    return int(config(technique).strategy.schedule.get("n_steps", 1)) - 1


def holds_numbers_as_they_are(technique: str) -> bool:
    parts = config(technique).strategy
    held = (parts.encoding, parts.sharing, parts.on_evict)
    return [part._target_.rpartition(".")[2] for part in held] == ["DenseStorage", "Unshared", "Drop"]


FOREIGN = [name for name in ALL if ".foreign." in config(name).strategy.cache._target_]
OURS = [name for name in ALL if "scorer" in config(name).strategy]  # points on the axes
CACHED = [name for name in OURS if "recompute" not in str(config(name).strategy.placement)]
EVICTING = [name for name in OURS if evicts(name)]
# What comes out of these is what went in, to the last digit; encodings, sharing and merging have error bounds instead.
EXACT = [name for name in CACHED if holds_numbers_as_they_are(name)]
FORESEEING = [name for name in EXACT if config(name).strategy.scorer._target_.endswith("OracleScorer")]
ONCE = [name for name in EVICTING if "AtPrefill" in str(config(name).strategy.schedule)]
STEADY = [name for name in EVICTING if name not in ONCE and n_waiting(name) == 0]  # their shapes are static


def overwrites(technique: str) -> bool:
    """Whether single slots can be replaced, as the windows of a model's own are."""
    parts = config(technique).strategy
    return instantiate(parts.encoding)(Contiguous()).overwrites and instantiate(parts.sharing).may_evict


OVERWRITING = [name for name in CACHED if overwrites(name)]


def on_families(names: list[str]) -> list[tuple[str, str]]:
    """Each technique on every family that it can be used on."""
    return [(name, model) for name in names for model in FAMILIES if model != "mistral" or name in OVERWRITING]


def rule(technique: str) -> ModuleType:
    """What a technique evicts, said once more; see `tests/strategies/rules`."""
    try:
        return import_module(f"tests.strategies.rules.{technique}")
    except ModuleNotFoundError:
        raise AssertionError(f"{technique} has no rule; write tests/strategies/rules/{technique}.py") from None


def build(
    technique: str, model: PreTrainedModel, kv_budget: int = BUDGET, headroom: int = 8, *overrides: str
) -> SlotCache:
    """A cache of the technique; one that keeps everything ignores the budget."""
    budget = kv_budget if evicts(technique) else None
    cache = instantiate(config(technique, *overrides).strategy.cache)(model=model, kv_budget=budget, headroom=headroom)
    assert isinstance(cache, SlotCache)
    return cache
