"""What the calculator is asked, composed from conf/memory.yaml and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline import models
from pipeline.config import Count, Grid, Model, Strategy, one_line
from pipeline.refusals import CONF
from pipeline.variants import takes_budget

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Dtype = Annotated[
    Literal["float64", "float32", "bfloat16", "float16"], BeforeValidator(lambda value: SHORT.get(str(value), value))
]


class Question(BaseModel):
    """One model and one technique over a grid of lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Model
    strategy: Strategy
    seq_len: Grid
    batch: Count
    n_new_tokens: Count
    dtype: Dtype
    gpu_gb: Annotated[float, Field(gt=0, lt=1e9)]  # 10^9 bytes
    n_gpus: Count
    seed: Annotated[int, Field(ge=0)]

    @property
    def gpu_bytes(self) -> int:
        return int(self.gpu_gb * 10**9) * self.n_gpus

    @property
    def offloads(self) -> bool:
        """Whether tokens lie on the host, whose memory `gpu_gb` does not say."""
        return str((self.strategy.placement or {}).get("_target_")).endswith(".Offload")

    def budget_at(self, seq_len: int) -> int | None:
        """Raises ValueError for a budget that keeps nothing, and for one that means nothing to the technique."""
        budget = self.strategy.budget_at(seq_len)
        if budget == 0:
            raise ValueError(f"strategy.keep_ratio={self.strategy.keep_ratio}: keeps nothing of {seq_len} tokens; "
                             "valid: a ratio that keeps at least one token")  # fmt: skip
        if budget is not None and not takes_budget(self.strategy.name, self.strategy.schedule):
            raise ValueError(f"strategy.kv_budget={budget}: {self.strategy.name} never evicts; valid: null")
        return budget

    def configured(self) -> PreTrainedConfig:
        """Raises ValueError for everything that `models.shape` refuses, and for lengths that have no positions."""
        config = models.shape(self.model)
        n_positions = models.n_positions(config)
        if n_positions is not None and max(self.seq_len) > n_positions:
            raise ValueError(f"seq_len={max(self.seq_len)}: {self.model.label} has only {n_positions} positions; "
                             f"valid: at most {n_positions}")  # fmt: skip
        return config


def asked(overrides: Sequence[str]) -> Question:
    """Raises ValueError, one line, or Hydra's own errors, before anything heavy is imported."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        content: Any = OmegaConf.to_container(compose("memory", list(overrides)), resolve=True)
    try:
        question = Question.model_validate(content)
    except ValidationError as error:
        raise ValueError(one_line(error)) from None
    for seq_len in question.seq_len:
        question.budget_at(seq_len)
    return question
