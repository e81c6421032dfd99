"""What the advisor is asked, composed from conf/advise.yaml and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import ROOT
from pipeline.advise.selection import Objective, Share
from pipeline.config import Count, Model, Strategy, one_line
from pipeline.memory.question import Dtype, Question
from pipeline.refusals import CONF


class Wish(BaseModel):
    """One model at one length and batch, a memory, and what quality must be kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Model
    baseline: Strategy
    seq_len: Count
    batch: Count
    n_new_tokens: Count
    dtype: Dtype
    memory_gb: Annotated[float, Field(gt=0, lt=1e9)]  # 10^9 bytes
    min_quality: Share | None  # of the full cache's recall
    quality_from: str | None  # the model whose measured quality is taken over
    objective: Objective
    results_dir: str

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 10**9)

    @property
    def results_path(self) -> Path:
        return ROOT / self.results_dir

    def question(self, strategy: Strategy) -> Question:
        """What the memory calculator is asked about one technique."""
        return Question(
            model=self.model,
            strategy=strategy,
            seq_len=[self.seq_len],
            batch=self.batch,
            n_new_tokens=self.n_new_tokens,
            dtype=self.dtype,
            gpu_gb=self.memory_gb,
            n_gpus=1,
            seed=0,
        )


def wish(overrides: Sequence[str]) -> Wish:
    """Raises ValueError, one line, or Hydra's own errors, before anything heavy is imported."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        content: Any = OmegaConf.to_container(compose("advise", list(overrides)), resolve=True)
    try:
        return Wish.model_validate(content)
    except ValidationError as error:
        raise ValueError(one_line(error)) from None
