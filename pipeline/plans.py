"""Plans as data: YAML files that say what to measure or to ask, each read into a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """A part of a plan: what it does not know it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Frozen)


def read(kind: type[P], path: Path) -> P:
    """Raises ValueError, naming field and file, for what is no such plan."""
    try:
        return kind.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; see {path}") from None
