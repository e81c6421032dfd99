"""What an earlier study ran and said, as data: conf/study.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline import ROOT, plans
from pipeline.plans import Frozen
from pipeline.record import Record

FILE = ROOT / "conf" / "study.yaml"
LEVEL = "study"
Range = tuple[float | None, float | None]  # of a ratio to the full cache's; None where it was left open


class Memory(Frozen):
    of: Literal["peak", "kv_held"]
    ratio: Range


class Earlier(Frozen):
    said: str
    decode: Range
    memory: Memory | None = None


class Setting(Frozen):
    """One technique as the study ran or described it. `point`: what of the strategy's file is set otherwise."""

    id: str
    title: str
    set: Literal["run", "described"]
    strategy: str
    point: dict[str, Any]
    n_new_tokens: int = Field(gt=0)
    earlier: Earlier
    measured: str
    here: str | None

    @property
    def overrides(self) -> list[str]:
        """For the command line."""
        points = [f"{name}={value}" for name, value in _dotted(self.point, "strategy.")]
        return [f"strategy={self.strategy}", *points, "workload=study", f"workload.n_new_tokens={self.n_new_tokens}"]

    def is_in(self, record: Record) -> bool:
        """Whether this is what the record measured, on any model."""
        strategy = record.config["strategy"]
        wanted = strategy["name"] == self.strategy and _within(self.point, strategy)
        return wanted and record.cell.level == LEVEL and record.cell.n_new_tokens == self.n_new_tokens


class Elsewhere(Frozen):
    """What the study had besides KV-cache techniques."""

    title: str
    said: str
    belongs_to: str


class Study(Frozen):
    source: str
    rows: list[Setting]
    elsewhere: list[Elsewhere]


def read(file: Path = FILE) -> Study:
    """Raises ValueError, naming field and file, for what is no study."""
    return plans.read(Study, file)


def _dotted(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(_within(value, whole.get(name)) for name, value in part.items())
    return bool(part == whole)
