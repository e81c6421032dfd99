"""How an embedded model is trained, as data: the values of conf/train.yaml and conf/recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.config import Model, Tracking
from pipeline.tasks import TASKS

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phase(_Frozen):
    """Steps at one context length."""

    seq_len: Annotated[int, Field(ge=32)]
    n_steps: Count
    batch: Count
    gaps: Share  # of the batches, whose positions have random gaps
    asked_twice: Share  # of the task rows' batches: as after an eviction, the question comes again
    ends_when_formed: bool  # as soon as the running accuracy says that recall has formed
    mixture: dict[str, Share]  # share of each kind of row

    @field_validator("mixture")
    @classmethod
    def _known_kinds(cls, mixture: dict[str, float]) -> dict[str, float]:
        kinds = ["text", "repeats", *TASKS]
        unknown = [kind for kind in mixture if kind not in kinds]
        if unknown or abs(sum(mixture.values()) - 1) > 1e-6:
            raise ValueError(f"unknown kinds {unknown}, or shares that do not add up to 1; valid: {', '.join(kinds)}")
        return mixture

    @model_validator(mode="after")
    def _room(self) -> Self:
        for kind in filter(TASKS.__contains__, self.mixture):
            task, n_times = TASKS[kind], 2 if self.asked_twice else 1
            n_facts = task.n_asked if kind == "multi_query" else task.n_facts  # the one that shrinks with its context
            valid = 2 * (n_facts + task.n_asked * n_times)
            if self.seq_len < valid:
                raise ValueError(f"no room for {kind} in seq_len={self.seq_len}; valid: >= {valid}")
        return self


class Start(_Frozen):
    model: str  # whose checkpoint
    convert: dict[str, Any]  # a function of it and of the number of KV heads that are wanted


class Recipe(_Frozen):
    starts_from: Start | None  # null: random weights
    accepted_when: Literal["gates", "formed", "trained"]  # every gate passes; recall forms in the first phase; always
    learning_rate: Annotated[float, Field(gt=0)]
    final_share: Share
    n_warmup_steps: Count
    betas: tuple[Share, Share]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    loss_weights: dict[str, Annotated[float, Field(ge=0)]]  # of text, recallable, answer
    formed_accuracy: Share
    max_gap: Count
    mixture: dict[str, Share]  # the usual one, for phases to refer to
    phases: Annotated[list[Phase], Field(min_length=1)]


class Training(_Frozen):
    """What `python -m pipeline.train` was asked to do."""

    model: Model
    tracking: Tracking
    seed: Annotated[int, Field(ge=0)]
    n_seeds: Count
    n_threads: Count
    max_s: Annotated[float, Field(gt=0)]  # of a core; a seed that would take longer is not begun
    recipe: Recipe

    @classmethod
    def of(cls, content: Any) -> Training:
        """Raises ValueError in one line that names the field and its value."""
        try:
            training = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ValueError(f"{field}={first['input']}: not possible; valid: {_valid(first['msg'])}") from None
        source, path = training.model.source, training.model.path or ""
        ours = source == "checkpoint" or (source == "random" and path.startswith("models/"))
        if not ours or not path or not training.model.config:
            raise ValueError(
                f"model={training.model.name}: source={training.model.source} is not trained here; "
                "valid: a model with path and config, such as model=tiny"
            )
        return training


def _valid(message: str) -> str:
    """What pydantic or a validator of ours says would be right."""
    return message.removeprefix("Input should be ").removeprefix("Value error, ")
