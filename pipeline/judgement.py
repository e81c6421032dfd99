"""results/gates.json: what the trained model reached and had to reach."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

FILE_NAME = "gates.json"


class Gate(BaseModel):
    """One value that must reach its bound, over `n` items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    unit: str
    seq_len: int
    value: float
    bound: float
    n: int
    passed: bool


class Judgement(BaseModel):
    """Every gate of one trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str | None
    gates: list[Gate]


def read(results_dir: Path) -> Judgement | None:
    """None where the gates were not measured; raises ValueError, naming the file, where it is not a judgement."""
    path = results_dir / FILE_NAME
    if not path.is_file():
        return None
    try:
        return Judgement.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise ValueError(f"corrupt {path}: {field}: {first['msg']}; run again: python -m pipeline.gates") from None
