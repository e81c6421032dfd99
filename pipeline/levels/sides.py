"""The two sides of a comparison: each a model, how its weights are held, and a cache on it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from hydra.utils import instantiate
from transformers import PreTrainedModel

from pipeline import calibration, models
from pipeline.config import Experiment, Model, Weights
from pipeline.decoding import Decoder
from pipeline.fingerprint import digest
from pipeline.memory.costs import Footprint, estimated, footprint
from pipeline.quality import NewDecoder
from pipeline.record import Cell

_loaded: dict[tuple[object, ...], PreTrainedModel] = {}  # of the last cell: a grid stays with its models
_footprints: dict[str, Footprint | None] = {}


@dataclass(frozen=True)
class Side:
    """`strategy` or `baseline` of one cell."""

    spec: Model
    weights: Weights
    cache: dict[str, Any]
    kv_budget: int | None
    cell: Cell

    @cached_property
    def outline(self) -> PreTrainedModel:
        """The model on the meta device, with plain weights: for shapes, products and what a cache takes.

        Raises ValueError for everything that `models.configured` refuses.
        """
        return models.outline(self.spec, self.cell.dtype)

    def held_outline(self) -> PreTrainedModel:
        """The model on the meta device, its weights as they will be held. Raises what transforms raise."""
        if not self.weights.transforms:
            return self.outline
        return self._transformed(models.outline(self.spec, self.cell.dtype))

    def load(self) -> PreTrainedModel:
        if self.key not in _loaded:
            loaded = models.load(self.spec, self.cell.dtype, self.cell.device, self.cell.seed).model
            _loaded[self.key] = self._transformed(loaded)
        return _loaded[self.key]

    @property
    def key(self) -> tuple[object, ...]:
        """What the loaded model depends on."""
        cell = self.cell
        return self.spec.model_dump_json(), digest(self.weights.transforms), cell.dtype, cell.device, cell.seed

    @property
    def is_loaded(self) -> bool:
        return self.key in _loaded

    def arm(self, model: PreTrainedModel) -> NewDecoder:
        """Given the number of tokens that will follow the prompt, a decoder on `model` with a cache of this side."""
        return partial(_new_decoder, model, self.spec, instantiate(self.cache), self.kv_budget)

    def footprint(self) -> Footprint | None:
        """Of the cache at this cell's shape. Computed once per process.

        Raises what technique and model raise for what cannot be. RuntimeError is what asks tensors for values, or what
        is not implemented where there are none; then the budget says what is held.
        """
        cell = self.cell
        shape = {"seq_len": cell.seq_len, "batch": cell.batch, "n_new_tokens": cell.n_new_tokens}
        key = digest([self.cache, self.kv_budget, shape, cell.dtype, self.spec.model_dump()])
        if key not in _footprints:
            try:
                with models.quiet():
                    _footprints[key] = footprint(self.arm(self.outline), **shape)
            except RuntimeError:
                _footprints[key] = estimated(self.outline, self.kv_budget, **shape)
        return _footprints[key]

    def _transformed(self, model: PreTrainedModel) -> PreTrainedModel:
        for transform in map(instantiate, self.weights.transforms.values()):
            seen = transform.needs_calibration and model.device.type != "meta"
            ids = calibration.calibration_ids(self.spec, model.config).to(model.device) if seen else None
            with models.quiet():
                transform(model, ids)
        return model


@dataclass(frozen=True)
class Sides:
    technique: Side
    full: Side

    @classmethod
    def of(cls, cell: Cell, experiment: Experiment) -> Sides:
        technique, full = (experiment.resolved[arm]["cache"] for arm in ("strategy", "baseline"))
        return cls(
            Side(experiment.model, experiment.weights, technique, cell.kv_budget, cell),
            Side(experiment.reference, experiment.reference_weights, full, None, cell),
        )

    def __iter__(self) -> Iterator[Side]:
        return iter((self.technique, self.full))

    @property
    def share_a_model(self) -> bool:
        return self.technique.key == self.full.key

    def give_back_others(self) -> None:
        """The memory of models that are neither of these."""
        if others := _loaded.keys() - {side.key for side in self}:
            for key in others:
                del _loaded[key]
            gc.collect()


def _new_decoder(model: Any, spec: Model, build: Any, kv_budget: int | None, headroom: int) -> Decoder:
    calibration.ensure(build, model, spec)
    return Decoder(model, build(model=model, kv_budget=kv_budget, headroom=headroom))
