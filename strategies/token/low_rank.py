"""Low-rank keys and values in calibrated bases (Palu, arXiv 2407.21118; LoRC, arXiv 2410.03111)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from strategies.calibration import LayerCalibration, calibration_of
from strategies.folded import folded_attention
from strategies.rope import Rotation, rotation_of
from strategies.token.dense import DenseStorage
from strategies.token.parts import Encoding, Room

_TILE = 256  # keys that are rebuilt at once


@dataclass(frozen=True)
class LowRank:
    """Of D dimensions, `rank_ratio` · D are held of every key and value: the principal ones of their layer and KV head.

    The papers factorise the projection weights, whitened by calibration inputs (Palu) or not (LoRC). Here the bases
    come from the keys and values of a calibration text themselves, which is the same optimum, the least squared error
    of what is cached, without touching a weight; ranks are equal in all layers, and heads are not grouped.

    By default the basis is one of keys that carry their rotary position: it folds into the query and nothing is ever
    rebuilt. `pre_rope`: keys are turned back before they are projected, as in Palu, where fewer dimensions say more;
    attention rebuilds and turns them again, tile by tile. A key's slot is then its position: nothing may be evicted.
    """

    rank_ratio: float = 0.5
    pre_rope: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rank_ratio <= 1:
            raise ValueError(f"encoding.rank_ratio={self.rank_ratio}: not a share of the dimensions; "
                             "valid: more than 0, at most 1")  # fmt: skip

    def __call__(self, room: Room) -> LowRankStorage:
        """One without bases, which can only be asked what it could do."""
        return LowRankStorage(room, pre_rope=self.pre_rope)

    def of_layers(self, model: PreTrainedModel, n_layers: int) -> list[Encoding]:
        """Raises ValueError for a model that was not calibrated, or has no rotary positions to turn keys back from."""
        calibration = calibration_of(model)
        name = type(model).__name__
        if calibration is None:
            raise ValueError(f"encoding=low_rank: not calibrated for this {name}; "
                             "valid: strategies.calibration.calibrate(model, ids) first")  # fmt: skip
        rotation = rotation_of(model) if self.pre_rope else None
        if self.pre_rope and rotation is None:
            raise ValueError(f"encoding.pre_rope=True: model={name} has no rotary positions; valid: pre_rope=False")

        def encoding(index: int) -> Encoding:
            if layer := calibration.get(index):
                bases = self._bases(layer, model)
                return partial(LowRankStorage, pre_rope=self.pre_rope, bases=bases, rotation=rotation)
            return self

        return [encoding(index) for index in range(n_layers)]

    def _bases(self, layer: LayerCalibration, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        key = layer.unrotated_key if self.pre_rope else layer.key
        assert key is not None, "whatever can be turned back was calibrated so"
        n_dims = key.energies.shape[-1]
        rank = round(self.rank_ratio * n_dims)
        if not rank:
            raise ValueError(f"encoding.rank_ratio={self.rank_ratio}: leaves none of {n_dims} dimensions; "
                             f"valid: at least {1 / n_dims:.3g}")  # fmt: skip
        return key.basis(rank).to(model.dtype), layer.value.basis(rank).to(model.dtype)


class LowRankStorage:
    """Latents [B, H, capacity, r] of keys and values, held densely; bases [H, D, r] are the cache's own, and counted.

    q·k ≈ (q·basis)·latent and Σ p·v ≈ (Σ p·latent)·basisᵀ, so attention runs in r dimensions.
    """

    key_basis: Tensor
    value_basis: Tensor

    def __init__(
        self,
        room: Room,
        *,
        pre_rope: bool,
        bases: tuple[Tensor, Tensor] | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        self.by_position = pre_rope
        self.overwrites = not pre_rope
        self.latents = DenseStorage(room)
        self.rotation = rotation
        if bases is not None:
            self.key_basis, self.value_basis = bases

    @property
    def capacity(self) -> int:
        return self.latents.capacity

    def bytes_of(self, n_held: int) -> int:
        """Bytes of the latents; the bases do not grow with the tokens."""
        return self.latents.bytes_of(n_held)

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens [B, H, n, D], with room for `capacity`."""
        self.latents.load(*self._project(0, key, value), capacity)

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        self.latents.append(n_held, *self._project(n_held, key, value))

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrite one slot [b, h, 1] per row and head with the new token."""
        if self.by_position:
            raise NotImplementedError("a key's slot is its position; see `overwrites`")
        self.latents.replace(slot, *self._project(0, key, value))

    def place_first(self, key: Tensor) -> None:
        """Overwrite the first s keys, where the sinks lie; key [B, H, s, D]."""
        self.latents.place_first(_onto(key.to(self.key_basis.dtype), self.key_basis))

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, H, 1, D] in slots [B, H, 1], rebuilt."""
        key, value = self.latents.at(slot)
        return _back(key, self.key_basis), _back(value, self.value_basis)

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        self.latents.write_value(slot, _onto(value, self.value_basis))

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """The held keys and values [B, H, n_held, D], rebuilt; not for a decode step."""
        return self._keys(0, n_held), _back(self.latents.values[:, :, :n_held], self.value_basis)

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        if self.rotation is None:
            return self.latents.products(_onto(rows, self.key_basis), n_held)
        score = rows.new_empty((*rows.shape[:3], n_held))
        for start in range(0, n_held, _TILE):
            end = min(start + _TILE, n_held)
            score[..., start:end] = rows @ self._keys(start, end).to(rows.dtype).transpose(-1, -2)
        return score

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        return _back(self.latents.weighted(weight, n_held), self.value_basis)

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        if self.rotation is not None:
            return self.attend_observed(query, n_held, mask, scaling=scaling, softcap=softcap)[0]
        rows = query.reshape(query.shape[0], self.key_basis.shape[0], -1, query.shape[3])
        folded = _onto(rows, self.key_basis).reshape(*query.shape[:3], -1)
        latent = self.latents.attend(folded, n_held, mask, scaling=scaling, softcap=softcap)
        return _back(latent.reshape(*rows.shape[:3], -1), self.value_basis).reshape(query.shape)

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        n_kv_heads = self.key_basis.shape[0]
        return folded_attention(self, query, n_kv_heads, n_held, mask, scaling=scaling, softcap=softcap)

    def reorder(self, beam_idx: Tensor) -> None:
        self.latents.reorder(beam_idx)

    def _project(self, first: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, H, n, r] of key and value [B, H, n, D] that lie in slots `first` and following."""
        if self.rotation is not None:
            key = self.rotation.turned(key, -torch.arange(first, first + key.shape[2], device=key.device))
        return _onto(key, self.key_basis), _onto(value, self.value_basis)

    def _keys(self, start: int, end: int) -> Tensor:
        """Rebuilt keys [B, H, end - start, D]."""
        key = _back(self.latents.keys[:, :, start:end], self.key_basis)
        if self.rotation is None:
            return key
        return self.rotation.turned(key, torch.arange(start, end, device=key.device))


def _onto(vectors: Tensor, basis: Tensor) -> Tensor:
    """[B, H, n, D] → [B, H, n, r]."""
    return torch.einsum("bhnd,hdr->bhnr", vectors, basis.to(vectors.dtype))


def _back(latents: Tensor, basis: Tensor) -> Tensor:
    """[B, H, n, r] → [B, H, n, D]."""
    return torch.einsum("bhnr,hdr->bhnd", latents, basis.to(latents.dtype))
