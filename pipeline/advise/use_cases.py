"""Use cases and the questions of the decision tree, as conf/use_cases.yaml states them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import ROOT
from pipeline.advise.selection import Needs

FILE = ROOT / "conf" / "use_cases.yaml"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UseCase(_Frozen):
    title: str
    asks: str  # what is wanted, in words
    needs: Needs


class Choice(_Frozen):
    answer: str
    needs: dict[str, Any]  # the part of `Needs` that this answer settles


class Question(_Frozen):
    question: str
    answers: list[Choice]


class Plan(_Frozen):
    use_cases: list[UseCase]
    tree: list[Question]  # asked in this order


@cache
def load(path: Path = FILE) -> Plan:
    """Raises ValueError, naming field and file, for what is no plan."""
    try:
        return Plan.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; see {path}") from None
