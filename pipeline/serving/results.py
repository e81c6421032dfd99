"""What the simulations found, as results/serving.json holds it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline import record
from pipeline.serving.plan import Beams, Fill, Frozen, Growth, Plan, Study

FILE = "serving.json"
Policy = Literal[
    "contiguous_longest", "contiguous_power_of_two", "contiguous_exact", "paged", "paged_swapping", "paged_sharing"
]


class Served(Frozen):
    """One simulation. Shares of memory are means over steps; a step counts after every sequence has grown."""

    n_slots: int  # tokens that the memory has room for
    n_arrived: int
    n_finished: int
    n_running: int  # at the end
    n_waiting: int
    utilisation: float  # tokens held / slots allocated, mean over the steps in which any are
    held: float  # of the memory: by tokens
    unfilled: float  # allocated and without a token: reserved, or the rest of a block (internal fragmentation)
    unusable: float  # free and enough for the next request, but in pieces (external fragmentation)
    concurrent_mean: float  # sequences
    concurrent_peak: int
    n_preemptions: int
    n_recomputed: int  # tokens that were fed again after a preemption
    finished_tokens_per_step: float  # output of finished requests: goodput
    waiting_steps: float  # from arrival to admission or to the end, mean over those who arrived


class Load(Frozen):
    """The requests of a trace."""

    n_requests: int
    n_sharing: int  # whose prompt begins with a common one
    prompt_mean: float  # tokens
    output_mean: float
    longest: int  # prompt and output together


class OfPolicy(Frozen):
    policy: Policy
    block_size: int | None
    served: Served


class Size(Frozen):
    """What a technique keeps of a sequence, in slots: a slot is one kept token of all layers, as it is encoded."""

    slot_bytes: float
    fixed: int  # slots that every sequence takes besides
    keeps: float  # of the prompt's tokens
    grows: bool  # by a slot with every generated token

    def n_slots(self, n_prompt: int, n_generated: int) -> int:
        return self.fixed + round(self.keeps * n_prompt) + (n_generated if self.grows else 0)


class OfTechnique(Frozen):
    """Techniques that keep the same bytes are served alike."""

    techniques: list[str]
    size: Size
    served: Served


class Unsized(Frozen):
    techniques: list[str]
    reason: str


class Filled(Frozen):
    asked: Fill
    n_tokens: int
    n_contiguous: int  # slots
    n_blocks: int


class Grown(Frozen):
    asked: Growth
    n_blocks: list[int]


class Forked(Frozen):
    asked: Beams
    n_blocks: int
    n_blocks_unshared: int


class Recounted(Frozen):
    asked: Study
    n_slots: int
    n_paged: int  # sequences


class Counted(Frozen):
    fills: list[Filled]
    growth: Grown
    beams: Forked
    study: Recounted


class Serving(Frozen):
    schema_version: Literal[1] = 1
    plan: Plan
    weight_bytes: int
    room_bytes: int  # that the weights leave
    load: Load
    policies: list[OfPolicy]
    block_sizes: list[OfPolicy]
    techniques_load: Load
    techniques: list[OfTechnique]
    unsized: list[Unsized]
    cases: Counted


def read(results_dir: Path) -> Serving | None:
    """None where nothing was computed. Raises ValueError, naming the file, where it is something else."""
    path = results_dir / FILE
    return record.read_as(Serving, path, "delete it to compute again") if path.exists() else None
