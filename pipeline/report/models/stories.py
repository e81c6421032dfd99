"""What the training of a model left behind: `training.json` in the folder that its records name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline import ROOT, record
from pipeline.judgement import Gate

FILE_NAME = "training.json"
TRAINED = "trained"  # any other outcome left no weights


class Phase(BaseModel):
    model_config = ConfigDict(frozen=True)

    seq_len: int
    n_steps: int
    solved_at_step: int | None  # where the running accuracy of answers reached what the recipe calls formed


class Milestone(BaseModel):
    """Of a model that starts from another one's weights: what it could after so many steps."""

    model_config = ConfigDict(frozen=True)

    n_steps: int
    gates: list[Gate]


class Story(BaseModel):
    """What the report reads of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    outcome: str
    reason: str = ""  # why there are no weights
    n_parameters: int
    recipe: dict[str, Any]
    phases: list[Phase]
    milestones: list[Milestone]
    gates: list[Gate]
    curve: list[dict[str, float]]
    n_tokens: int
    seed: int
    cpu_s: float

    @property
    def starts_from(self) -> str | None:
        """The model whose weights it began with; None for random ones."""
        begin: dict[str, Any] | None = self.recipe.get("starts_from")
        return begin["model"] if begin else None

    @property
    def n_steps(self) -> int:
        return sum(phase.n_steps for phase in self.phases)

    @property
    def solved_at_step(self) -> int | None:
        """When recall formed; None where it did not, was there from the start, or nothing was begun."""
        return None if self.starts_from or not self.phases else self.phases[0].solved_at_step

    @property
    def tokens_per_cpu_s(self) -> float | None:
        """None where the seconds of a training hold those of judging in between."""
        return None if self.milestones or not self.cpu_s else self.n_tokens / self.cpu_s

    def measured(self) -> Iterator[tuple[int, int, dict[str, float]]]:
        """(phase, steps since the start of the training, values): the steps of a curve count from their phase."""
        phase, before, last = 0, 0, 0.0
        for point in self.curve:
            while phase + 1 < len(self.phases) and (
                point["seq_len"] != self.phases[phase].seq_len or point["step"] <= last
            ):
                before, phase, last = before + self.phases[phase].n_steps, phase + 1, 0.0
            last = point["step"]
            yield phase, before + int(last), point


def read(path: str) -> Story | None:
    """Of `model.path`; None where nothing was trained. Raises ValueError, in one line, for what is not a story."""
    file = ROOT / path / FILE_NAME
    return record.read_as(Story, file, "train it again: python -m pipeline.train") if file.is_file() else None
