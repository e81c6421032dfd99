"""Use cases and the questions of the decision tree, as conf/use_cases.yaml states them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pipeline import ROOT, plans
from pipeline.advise.selection import Needs
from pipeline.plans import Frozen

FILE = ROOT / "conf" / "use_cases.yaml"


class UseCase(Frozen):
    title: str
    asks: str  # what is wanted, in words
    needs: Needs


class Choice(Frozen):
    answer: str
    needs: dict[str, Any]  # the part of `Needs` that this answer settles


class Question(Frozen):
    question: str
    answers: list[Choice]


class Plan(Frozen):
    use_cases: list[UseCase]
    tree: list[Question]  # asked in this order


@cache
def load(path: Path = FILE) -> Plan:
    """Raises ValueError, naming field and file, for what is no plan."""
    return plans.read(Plan, path)
