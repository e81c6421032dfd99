"""results/gates.json: what the trained model and the techniques on it reached, and had to reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline import record
from pipeline.record import Interval

FILE_NAME = "gates.json"
SIGNIFICANT = 0.05

# `wholly above`: the interval is; `not below`: it may be, but not significantly.
Rule = Literal["at least", "at most", "wholly above", "not below"]


class Gate(BaseModel):
    """One value and its bound, over `n` items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    unit: str
    seq_len: int
    value: float
    bound: float
    n: int
    passed: bool
    rule: Rule = "at least"
    interval: Interval | None = None
    p_value: float | None = None  # of lying below the bound, adjusted for how many were compared

    @property
    def demand(self) -> str:
        return f"{self.rule} {self.bound:g}"


class Kept(BaseModel):
    """What one technique keeps after a prompt: shares from 0 to 1, mean over items, layers and KV heads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    technique: str
    task: str
    protocol: Literal["query_aware", "query_agnostic"]
    seq_len: int
    kv_budget: int
    n_items: int
    accuracy: float
    by_kind: dict[str, float]  # of all tokens of a kind
    by_depth: list[float]  # of all tokens of each part of the prompt, parts of equal length, from its start


class Judgement(BaseModel):
    """Every gate of one trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str | None
    gates: list[Gate]
    kept: Sequence[Kept] = ()


def passes(
    rule: Rule, value: float, bound: float, interval: Interval | None = None, p_value: float | None = None
) -> bool:
    """Raises TypeError where the rule needs an interval or a p-value that is not there."""
    match rule, interval, p_value:
        case "at least", _, _:
            return value >= bound
        case "at most", _, _:
            return value <= bound
        case "wholly above", Interval(low=low), _:
            return low > bound
        case "not below", _, float(p):
            return p >= SIGNIFICANT
    raise TypeError(f"rule={rule} with interval={interval}, p_value={p_value}")


def read(results_dir: Path) -> Judgement | None:
    """None where the gates were not measured; raises ValueError, naming the file, where it is not a judgement."""
    path = results_dir / FILE_NAME
    return record.read_as(Judgement, path, "run again: python -m pipeline.gates") if path.is_file() else None
