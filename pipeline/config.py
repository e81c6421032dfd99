"""The resolved configuration as frozen values: types and ranges here, what fields say together in `checks`."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline import ROOT, checks, hardware
from pipeline.record import Cell
from pipeline.variants import variant, weights_variant

OmegaConf.register_new_resolver("profile_for_hardware", lambda: "cuda" if hardware.has_cuda() else "cpu", replace=True)

Count = Annotated[int, Field(gt=0)]
# `workload.seq_len=512` on the command line means a grid of one.
Grid = Annotated[
    list[Count], Field(min_length=1), BeforeValidator(lambda value: value if isinstance(value, list) else [value])
]


Task = Literal["single_needle", "multi_key_8", "multi_key_32", "multi_query", "variable_tracking", "most_frequent"]


AXES = ("scorer", "allocation", "schedule", "on_evict", "encoding", "sharing", "placement")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Weights(_Frozen):
    """A point: transforms by name, in the order in which they are applied to a loaded model."""

    name: str
    title: str
    paper: str | None
    summary: str
    transforms: dict[str, dict[str, Any]]

    @property
    def variant(self) -> str:
        """The name, with what the command line changed of the published point."""
        return weights_variant(self.name, self.transforms)


class Engine(_Frozen):
    """Who runs the model. `build` is called with it and gives an engine of `pipeline.engines`; null: our own loop."""

    name: str
    title: str
    summary: str
    build: dict[str, Any] | None = None


class Strategy(_Frozen):
    """A point: what is kept (scorer … on_evict) and how it is held (encoding … placement).

    A technique of another package brings a cache of its own, which takes none of the axes.
    """

    name: str
    title: str
    paper: str | None
    summary: str
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None
    kv_budget: Count | None
    cache: dict[str, Any]
    scorer: dict[str, Any] | None = None
    allocation: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    on_evict: dict[str, Any] | None = None
    encoding: dict[str, Any] | None = None
    sharing: dict[str, Any] | None = None
    placement: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _axes_are_those_of_the_cache(self) -> Strategy:
        given, taken = self._parts.keys() - {"cache"}, set(AXES) & self.cache.keys()
        if given != taken:
            why = f"takes {', '.join(sorted(taken)) or 'no axes'}, got {', '.join(sorted(given))}"
            raise ValueError(
                f"cache={self.cache['_target_']}: {why}; valid: strategy/cache=slots, which takes all axes"
            )
        return self

    @property
    def _parts(self) -> dict[str, dict[str, Any]]:
        """The cache, and the axes if it takes any."""
        return {name: part for name in ("cache", *AXES) if (part := getattr(self, name)) is not None}

    @property
    def variant(self) -> str:
        """The name, with what the command line changed of the published point."""
        return variant(self.name, self._parts)

    def budget_at(self, seq_len: int) -> int | None:
        """Tokens per KV head for a prompt; an explicit budget wins over the ratio, neither keeps everything."""
        if self.kv_budget is not None or self.keep_ratio is None:
            return self.kv_budget
        return round(self.keep_ratio * seq_len)


class Model(_Frozen):
    name: str
    title: str
    source: Literal["checkpoint", "random", "hub"]
    path: str | None
    revision: str | None = None  # branch, tag or commit of a model of the hub
    max_seq_len: Count | None
    hard_limit: bool
    config: dict[str, Any] | None

    @property
    def label(self) -> str:
        """What its records are called: weights of a user's own choice go by where they come from."""
        if self.source != "hub" or not self.path:
            return self.name
        return _file_name(self.path) + (f"@{_safe(self.revision)}" if self.revision else "")


class Level(_Frozen):
    name: Literal["token", "ablation", "study", "model", "system", "engine"]
    dry_run: dict[str, Any]
    measure: dict[str, Any]
    reference: Model | None = None  # whose cache is the baseline; null: the model that is measured
    reference_weights: Weights | None = None  # of the baseline; null: those that are measured


class Workload(_Frozen):
    name: str
    measure: Annotated[list[Literal["cost", "quality", "throughput"]], Field(min_length=1)]
    seq_len: Grid
    batch: Grid
    n_new_tokens: Count
    tasks: list[Task]
    n_items: Count
    n_text_streams: Annotated[int, Field(ge=0)]
    n_text_tokens: Annotated[int, Field(ge=0)]
    requests: dict[str, Any] | None = None  # of a throughput: how prompts and lengths are drawn
    text: str | None = None  # a file, or DATASET_ID[:CONFIG[:SPLIT]]; null: held-out source of the standard library

    @property
    def label(self) -> str:
        """What its records are called: on another text it is another workload."""
        return self.name if self.text is None else f"{self.name}@{_file_name(self.text)}"


class Profile(_Frozen):
    name: str
    n_threads: Count | None
    n_prefill_trials: Count
    n_decode_trials: Count
    n_new_tokens: Count
    n_bootstrap: Count
    n_items: Count
    n_text_streams: Annotated[int, Field(ge=0)]
    n_text_tokens: Annotated[int, Field(ge=0)]
    max_cell_s: Annotated[float, Field(gt=0)]
    standard_seq_len: Grid
    quality_seq_len: Grid
    cost_seq_len: Grid
    batched_seq_len: Grid


class Tracking(_Frozen):
    name: str
    mode: Literal["offline", "online", "disabled"]
    project: str
    timeout_s: Annotated[float, Field(gt=0)]


class Experiment(_Frozen):
    """One technique on one model over a grid of lengths and batches."""

    level: Level
    model: Model
    strategy: Strategy
    baseline: Strategy
    weights: Weights
    engine: Engine
    workload: Workload
    profile: Profile
    tracking: Tracking
    seed: Annotated[int, Field(ge=0)]
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda"]
    results_dir: str
    prune: bool

    @classmethod
    def from_hydra(cls, cfg: DictConfig) -> Experiment:
        """Raises ValueError, one line with field, value and what is valid, before anything heavy is imported."""
        try:
            experiment = cls.model_validate(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        except ValidationError as error:
            raise ValueError(one_line(error)) from None
        checks.check(experiment)
        return experiment

    @cached_property
    def resolved(self) -> dict[str, Any]:
        return self.model_dump()

    @property
    def reference(self) -> Model:
        """The model of the baseline."""
        return self.level.reference or self.model

    @property
    def reference_weights(self) -> Weights:
        """How the baseline's are held."""
        return self.level.reference_weights or self.weights

    @property
    def lacks_trained_weights(self) -> bool:
        """Quality is asked of weights that nobody trained."""
        return "quality" in self.workload.measure and self.model.source == "random"

    @property
    def results_path(self) -> Path:
        return ROOT / self.results_dir

    @property
    def n_threads(self) -> int:
        return self.profile.n_threads or hardware.n_usable_cores()

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        if self.device == "auto":
            return "cuda" if hardware.has_cuda() else "cpu"
        return self.device

    def cells(self) -> list[Cell]:
        """The grid, shortest prompt first."""
        return [self._cell(seq_len, batch) for seq_len in self.workload.seq_len for batch in self.workload.batch]

    def _cell(self, seq_len: int, batch: int) -> Cell:
        return Cell(
            level=self.level.name,
            model=self.model.label,
            strategy=self.strategy.variant,
            weights=self.weights.variant,
            engine=self.engine.name,
            workload=self.workload.label,
            seq_len=seq_len,
            batch=batch,
            n_new_tokens=self.workload.n_new_tokens,
            kv_budget=self.strategy.budget_at(seq_len),
            dtype=self.dtype,
            device=self.resolved_device,
            seed=self.seed,
        )


def _file_name(path: str) -> str:
    """`org--name` of an id or a path: its last two parts."""
    return "--".join([_safe(part) for part in path.split("/") if _safe(part).strip(".~")][-2:])


def _safe(part: str) -> str:
    return re.sub(r"[^\w.~-]+", "-", part)


def one_line(error: ValidationError) -> str:
    """`field=value: why; valid: …` of the first thing that is wrong."""
    first = error.errors()[0]
    field = ".".join(part for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return f"{field}={first['input']!r}: no such option; see --cfg job"
    if first["type"] == "missing":
        return f"{field}: missing; see --cfg job"
    if first["type"] == "value_error":  # our own words on several fields of a group
        return f"{field}.{first['ctx']['error']}"
    valid = first["msg"].removeprefix("Input should be ")
    why = f"not possible; valid: {valid}" if valid != first["msg"] else valid
    return f"{field}={first['input']}: {why}"
