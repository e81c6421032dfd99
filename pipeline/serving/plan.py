"""What is simulated, composed from conf/serving.yaml and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import ROOT
from pipeline.config import Count, Grid, Model, one_line

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LogNormal(Frozen):
    median: Positive
    sigma: Annotated[float, Field(ge=0, lt=10)]


class SystemPrompts(Frozen):
    """Prefixes that requests have in common: `share` of them begin with one of `n`."""

    n: Count
    n_tokens: Count
    share: Share


class Trace(Frozen):
    arrivals_per_step: Positive
    prompt: LogNormal
    output: LogNormal
    system_prompts: SystemPrompts


class Techniques(Frozen):
    arrivals_per_step: Positive
    seq_len: Annotated[Grid, Field(min_length=2, max_length=2)]
    n_layers: Count


class Fill(Frozen):
    """Sequences of known lengths: contiguous memory reserves `max_len` tokens for each."""

    lengths: list[Count]
    max_len: Count
    block_size: Count


class Growth(Frozen):
    """One sequence that grows to these lengths."""

    lengths: list[Annotated[int, Field(ge=0)]]
    block_size: Count


class Beams(Frozen):
    n: Count
    n_prefix_blocks: Count
    n_own_blocks: Count
    block_size: Count


class Study(Frozen):
    """What an earlier study said of contiguous memory and blocks, and the lengths that its figures assume."""

    n_contiguous: Count
    n_said: Count
    max_len: Count
    mean_len: Count
    block_size: Count


class Cases(Frozen):
    fills: list[Fill]
    growth: Growth
    beams: Beams
    study: Study


class Plan(Frozen):
    model: Model
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    gpu_gb: Annotated[float, Field(gt=0, lt=1e9)]  # 10^9 bytes
    max_len: Count
    block_size: Count
    watermark: Annotated[float, Field(ge=0, lt=1)]
    n_steps: Count
    seed: Annotated[int, Field(ge=0)]
    trace: Trace
    block_sizes: Grid
    techniques: Techniques
    cases: Cases
    allocator: dict[str, Any]


def asked(overrides: Sequence[str]) -> tuple[Plan, Path]:
    """The plan, and the folder for its results. Raises ValueError, one line, or Hydra's own errors."""
    from hydra import compose, initialize_config_dir  # which the report, that reads plans, can do without

    from pipeline.refusals import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        content: Any = OmegaConf.to_container(compose("serving", list(overrides)), resolve=True)
    results_dir = ROOT / str(content.pop("results_dir"))
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise ValueError(one_line(error)) from None
    _check(plan)
    return plan, results_dir


def _check(plan: Plan) -> None:
    """A request has a token of its own besides what is common, and an answer."""
    n_common = plan.trace.system_prompts.n_tokens
    if n_common + 2 > plan.max_len:
        raise ValueError(f"max_len={plan.max_len}: system prompts alone have {n_common} tokens; "
                         f"valid: at least {n_common + 2}")  # fmt: skip
