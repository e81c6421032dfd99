"""What keys and values of a model look like, layer by layer: their principal directions over a text.

Shapes: B batch, Hq query heads, H KV heads, T tokens, D head_dim.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from strategies.attention import attached
from strategies.rope import Rotation, rotation_of
from strategies.scout import Scout


@dataclass(frozen=True)
class Spectrum:
    """Second moments E[x xᵀ] of each KV head, taken apart: energies [H, D], largest first, and directions [H, D, D].

    Directions are the columns. What a projection to the first r of them loses, on average and of the tokens that were
    looked at, is the sum of the other energies, and no other r directions lose less.
    """

    energies: Tensor
    directions: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Spectrum:
        """vectors [B, H, T, D], in single precision at least."""
        wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        moments = torch.einsum("bhtd,bhte->hde", wide, wide) / (wide.shape[0] * wide.shape[2])
        energies, directions = torch.linalg.eigh(moments)
        return cls(energies.flip(-1), directions.flip(-1))

    def basis(self, rank: int) -> Tensor:
        """The first `rank` directions [H, D, rank], in memory of their own."""
        return self.directions[..., :rank].clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class LayerCalibration:
    """One layer's keys as attention sees them, keys before their rotary position where they have one, and values."""

    key: Spectrum
    unrotated_key: Spectrum | None
    value: Spectrum


Calibration = dict[int, LayerCalibration]  # by layer; layers without attention have none

_known: WeakKeyDictionary[PreTrainedModel, Calibration] = WeakKeyDictionary()


def calibration_of(model: PreTrainedModel) -> Calibration | None:
    """What `calibrate` found out about this very model, None before."""
    return _known.get(model)


@torch.no_grad()
def calibrate(model: PreTrainedModel, ids: Tensor) -> Calibration:
    """Look at the keys and values of `ids` [B, T] in one forward pass, and remember the outcome for this model.

    Some thousand tokens of the kind that will be cached are enough; never those that are scored. Raises ValueError for
    a model whose attention cannot be replaced.
    """
    rotation = None
    with suppress(ValueError):  # what cannot be turned back is calibrated as it is
        rotation = rotation_of(model)
    layers: list[Any] = [
        Scout(partial(_look, rotation=rotation)) if isinstance(layer, DynamicLayer) else layer
        for layer in DynamicCache(config=model.config).layers
    ]
    scouts: Any = Cache(layers=layers)
    with attached(model, scouts):
        model(input_ids=ids, past_key_values=scouts, logits_to_keep=1)
    _known[model] = {index: layer.seen for index, layer in enumerate(layers) if isinstance(layer, Scout)}
    return _known[model]


def _look(query: Tensor, key: Tensor, value: Tensor, *, rotation: Rotation | None, **how: Any) -> LayerCalibration:
    unrotated = None
    if rotation is not None:
        unrotated = Spectrum.of(rotation.turned(key, -torch.arange(key.shape[2], device=key.device)))
    return LayerCalibration(Spectrum.of(key), unrotated, Spectrum.of(value))
