"""Every combination of shipped parts composes, or is refused with a reason that names both axes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from strategies.cache import SlotCache, build_cache
from tests.strategies.models import family, prompt
from tests.strategies.techniques import BUDGET, CONF, fitted
from tests.strategies.test_laws import mean_held, stream

AXES = ("scorer", "allocation", "schedule", "on_evict", "encoding", "sharing", "placement")
PARTS = {axis: sorted(path.stem for path in (CONF / "strategy" / axis).glob("*.yaml")) for axis in AXES}
PARTS["placement"].remove("recompute")  # holds nothing
REFUSED = [
    ("scorer=SnapKVScorer", "schedule="),
    ("scorer=OracleScorer", "schedule="),
    ("encoding=KiviStorage", "schedule="),
    ("allocation=AdaptiveAllocation", "schedule="),
    ("sharing=MiniCache", "schedule="),
    ("allocation=AdaptiveAllocation", "on_evict=Merge"),
    ("allocation=AdaptiveAllocation", "encoding=LowRankStorage"),
    ("scorer=SinkScorer", "encoding=KiviStorage"),
    ("encoding=LowRankStorage", "placement=Offload"),
    ("encoding=LowRankStorage", "sharing=MiniCache"),
    ("allocation=AdaptiveAllocation", "placement=Offload"),
    ("encoding=KiviStorage", "placement=Paged"),
    ("encoding=LowRankStorage", "placement=Paged"),
]
N_SHARES = 8

Point = tuple[str, ...]  # a part for each axis


def points() -> Iterator[Point]:
    return product(*(PARTS[axis] for axis in AXES))


@cache
def part(axis: str, name: str) -> Any:
    config = OmegaConf.create({"seed": 0, "part": OmegaConf.load(CONF / "strategy" / axis / f"{name}.yaml")})
    return instantiate(fitted(axis, config.part))


def build(point: Point) -> SlotCache:
    parts = {axis: part(axis, name) for axis, name in zip(AXES, point, strict=True)}
    cache = build_cache(family("llama"), kv_budget=None if "never" in point else BUDGET, **parts)
    assert cache is not None
    return cache


@cache
def sorted_out() -> tuple[list[Point], dict[Point, str]]:
    """Those that compose, and why the others do not."""
    composed, refused = [], {}
    for point in points():
        try:
            build(point)
            composed.append(point)
        except ValueError as refusal:
            refused[point] = str(refusal)
    return composed, refused


@cache
def covering() -> list[Point]:
    """Points in which every pair of parts that go together meets at least once."""
    composed, met = list(sorted_out()[0]), set()
    random.Random(0).shuffle(composed)
    chosen = []
    for point in composed:
        pairs = set(combinations(zip(AXES, point, strict=True), 2))
        if pairs - met:
            chosen.append(point)
            met |= pairs
    return chosen


def test_every_combination_composes_or_says_which_axes_do_not_go_together() -> None:
    composed, refused = sorted_out()
    assert len(composed) > len(refused) / 2
    for point, why in refused.items():
        assert any(all(axis in why for axis in pair) for pair in REFUSED), (point, why)
        assert "; valid: " in why
    for first, second in REFUSED:  # each of these is needed
        assert any(first in why and second in why for why in refused.values()), (first, second)


@pytest.mark.parametrize("share", range(N_SHARES))
def test_every_pair_of_parts_that_go_together_runs(share: int) -> None:
    for point in covering()[share::N_SHARES]:
        cache, ids = build(point), prompt(2, 60)
        both = stream(family("llama"), cache, ids, n_prompt=40)
        alone = stream(family("llama"), build(point), ids[1:], n_prompt=40)
        torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-9)
        assert cache.get_seq_length() == 60
        slack = {"at_prefill": 20, "every_n_steps": 31, "never": 60 - BUDGET}.get(point[AXES.index("schedule")], 0)
        assert BUDGET <= mean_held(cache) <= BUDGET + slack, point
        assert 0 < cache.bytes_logical <= cache.bytes_held + cache.bytes_offloaded, point
