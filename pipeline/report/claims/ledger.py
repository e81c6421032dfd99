"""Published claims as data: conf/claims.yaml, read and checked. What a claim says is put to the test elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from pipeline import ROOT
from pipeline.report.claims.facts import COORDINATES, PARTS
from pipeline.report.claims.quantities import QUANTITIES

FILE = ROOT / "conf" / "claims.yaml"
NAMED = ("strategy", "model", "weights", "engine", "workload", "level")  # coordinates with a file for each value


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    title: str = Field(min_length=1)
    citation: str = Field(min_length=1)


class Expected(_Frozen):
    """What is claimed of the quantity, in its own unit: a side, or a value with its tolerance."""

    below: float | None = None
    above: float | None = None
    about: float | None = None
    tolerance: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_one(self) -> Expected:
        given = [name for name in ("below", "above", "about") if getattr(self, name) is not None]
        if len(given) != 1 or (self.about is None) != (self.tolerance is None):
            raise ValueError("valid: below, above, or about with tolerance")
        return self

    @property
    def is_direction(self) -> bool:
        """Only a side of no difference, which is 0 of a difference and 1 of a ratio."""
        return self.about is None and (self.above if self.below is None else self.below) in (0.0, 1.0)

    @property
    def ends(self) -> tuple[float, float]:
        if self.about is not None and self.tolerance is not None:
            return self.about - self.tolerance, self.about + self.tolerance
        return (-math.inf if self.above is None else self.above), (math.inf if self.below is None else self.below)


class Check(_Frozen):
    """One quantity of the cells that are selected; of a pair, beside cells that differ from them in `against`."""

    quantity: str
    cells: dict[str, Any] = Field(min_length=1)
    against: dict[str, Any] = {}
    expected: Expected
    tested_as: str = Field(min_length=1)  # how near it comes to what was claimed


class Claim(_Frozen):
    """`untested`: why nothing here can test it, and what it would take; only where there are no tests."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    source: str
    claim: str = Field(min_length=1)
    tests: list[Check] = []
    untested: str = ""

    @model_validator(mode="after")
    def _is_tested_or_not(self) -> Claim:
        if bool(self.tests) == bool(self.untested):
            raise ValueError("valid: tests, or untested with the reason")
        return self


class Ledger(_Frozen):
    sources: dict[str, Source]
    claims: list[Claim] = Field(min_length=1)

    def source(self, claim: Claim) -> Source:
        return self.sources[claim.source]


def read(file: Path = FILE) -> Ledger:
    """Raises ValueError, one line with the file, the claim, its fault and what is valid."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        ledger = Ledger.model_validate(content)
    except YAMLError as error:
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ValueError(f"{file}: {_fault(error, content)}") from None
    if fault := next(_faults(ledger), None):
        raise ValueError(f"{file}: {fault}")
    return ledger


def _fault(error: ValidationError, content: Any) -> str:
    first = error.errors()[0]
    place = list(first["loc"])
    if place[:1] == ["claims"] and len(place) > 1 and isinstance(content["claims"][place[1]], dict):
        place[:2] = ["claim", str(content["claims"][place[1]].get("id", place[1]))]
    return f"{'.'.join(map(str, place))}: {first['msg']}"


def _faults(ledger: Ledger) -> Iterator[str]:
    seen: set[str] = set()
    for claim in ledger.claims:
        if claim.id in seen:
            yield f"claim {claim.id}: id={claim.id} is that of another claim"
        seen.add(claim.id)
        if claim.source not in ledger.sources:
            yield f"claim {claim.id}: source={claim.source} has no citation; valid: {_listed(ledger.sources)}"
        for test in claim.tests:
            yield from (f"claim {claim.id}: {fault}" for fault in _faults_of(test))


def _faults_of(test: Check) -> Iterator[str]:
    quantity = QUANTITIES.get(test.quantity)
    if quantity is None:
        yield f"quantity={test.quantity}: unknown; valid: {_listed(QUANTITIES)}"
        return
    if quantity.paired != bool(test.against):
        valid = "against, what the other one of the pair has" if quantity.paired else "no against"
        yield f"quantity={test.quantity} with against={test.against}: valid: {valid}"
    part = test.cells.get("part")
    if part is not None and part not in PARTS:
        yield f"part={part}: unknown; valid: {_listed(PARTS)}"
    coordinates = COORDINATES if part is None else PARTS.get(str(part), ())
    for key, value in (*test.cells.items(), *test.against.items()):
        if key != "part" and key not in coordinates:
            yield f"{key}={value}: no coordinate; valid: {_listed(coordinates)}"
        yield from (_unknown(key, name) for name in _values(value) if key in NAMED and not _is_known(key, name))


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_known(key: str, name: Any) -> bool:
    """A published point may have been changed, `kivi+encoding.bits=2`."""
    published = str(name).partition("+")[0]
    return published in _names(key) or (key, published) in MADE_BY_BENCHMARKS


MADE_BY_BENCHMARKS = {("level", "benchmark"), ("workload", "against_dynamic_cache")}  # they have no file


def _unknown(key: str, name: Any) -> str:
    return f"{key}={name}: unknown; valid: {_listed(_names(key))}"


def _names(key: str) -> list[str]:
    return sorted(path.stem for path in (FILE.parent / key).glob("*.yaml"))


def _listed(names: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    return ", ".join(names)
