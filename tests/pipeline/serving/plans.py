"""A plan that is simulated in a moment, for what the tests of this folder share."""

from __future__ import annotations

from typing import Any

from pipeline.serving import plan, trace
from pipeline.serving.plan import Plan
from pipeline.serving.results import Size
from pipeline.serving.trace import Request
from strategies.system.blocks import BlockManager

FULL = Size(slot_bytes=1, fixed=0, keeps=1.0, grows=True)
SMALL = (
    "n_steps=160",
    "max_len=256",
    "trace.arrivals_per_step=0.6",
    "trace.prompt={median: 24, sigma: 0.8}",
    "trace.output={median: 20, sigma: 0.8}",
    "trace.system_prompts={n: 2, n_tokens: 40, share: 0.5}",
)


def small(*overrides: str) -> Plan:
    return plan.asked([*SMALL, *overrides])[0]


def requests(*overrides: str) -> list[Request]:
    asked = small(*overrides)
    return trace.requests(asked.trace, n_steps=asked.n_steps, max_len=asked.max_len, seed=asked.seed)


def blocks(n_slots: int, block_size: int = 16) -> Any:
    return BlockManager(n_slots // block_size, block_size)
