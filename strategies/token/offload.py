"""Offloading: all tokens lie on the host, and a device sees only the layer at work and the next one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from strategies.tensors import held_tensors, is_offloaded
from strategies.token.host import HostRoom
from strategies.token.parts import Encoding, Storage, Storages
from strategies.token.staging import Staging


class Offload:
    """For a model on CUDA, pinned memory of the host and room for two layers on the device; else temporary files.

    Files lie where Python's `tempfile` puts them (TMPDIR) and go with the cache. A processor reads them in place: what
    is used stays in the page cache, and the kernel reads ahead what is not there. To ask it for the next layer
    (madvise) took longer than it saved where memory suffices.
    """

    def storages(self, encodings: Sequence[Encoding]) -> Storages:
        return OffloadedStorages(encodings)


class OffloadedStorages:
    """The storages of one cache, which share the room on the device. An object, so that a copied cache has its own."""

    def __init__(self, encodings: Sequence[Encoding]) -> None:
        self.encodings = encodings
        self.staging = Staging()

    def __call__(self, layer_idx: int) -> Storage:
        return OffloadedStorage(self.encodings[layer_idx], self.staging, layer_idx)


class OffloadedStorage:
    """A storage of any encoding, whose tensors stay at `home`.

    Where the model is on another device, a copy of it attends there. A new token is written to both, so that nothing
    ever moves back; it waits for the device once per layer and step, since the home is written by the processor.
    """

    def __init__(self, encoding: Encoding, staging: Staging, layer_idx: int) -> None:
        self.room = HostRoom()
        self.home = encoding(self.room)
        self.staging, self.layer_idx = staging, layer_idx
        self.buffers = staging.buffers  # all layers hold them, which counts them once

    @property
    def staged(self) -> bool:
        """Whether the model looks at copies."""
        return self.room.device.type == "cuda"

    @property
    def overwrites(self) -> bool:
        return self.home.overwrites

    @property
    def capacity(self) -> int:
        return self.home.capacity

    def bytes_of(self, n_held: int) -> int:
        return self.home.bytes_of(n_held)

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens, with room for `capacity`."""
        self.room.device = key.device
        self.staging.forget(self.layer_idx)
        self.home.load(key.to(self.room.host), value.to(self.room.host), capacity)
        if self.staged:
            self.staging.join(self.layer_idx, self.home)

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        for storage, device in self._written():
            storage.append(n_held, key.to(device), value.to(device))

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        for storage, device in self._written():
            storage.replace(slot.to(device), key.to(device), value.to(device))

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        for storage, device in self._written():
            storage.write_value(slot.to(device), value.to(device))

    def place_first(self, key: Tensor) -> None:
        for storage, device in self._written():
            storage.place_first(key.to(device))

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        return self._near().at(slot)

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        return self._near().tokens(n_held)

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        return self._near().attend(query, n_held, mask, scaling=scaling, softcap=softcap)

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        return self._near().attend_observed(query, n_held, mask, scaling=scaling, softcap=softcap)

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        return self._near().products(rows, n_held)

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        return self._near().weighted(weight, n_held)

    def reorder(self, beam_idx: Tensor) -> None:
        """What the encoding has made anew on the way moves to the host's room again."""
        self.staging.forget(self.layer_idx)
        old = {id(tensor): tensor for tensor in held_tensors(self.home)}
        self.home.reorder(beam_idx.to(self.room.host))
        memo: dict[int, Any] = {id(self.room): self.room} | old
        memo |= {id(new): self.room.copied(new) for new in held_tensors(self.home) if id(new) not in old}
        self.home = copy.deepcopy(self.home, memo)
        if self.staged:
            self.staging.join(self.layer_idx, self.home)

    def __deepcopy__(self, memo: dict[int, Any]) -> OffloadedStorage:
        """The copy's tensors are offloaded too; copied as any others, they would lie in memory."""
        twin = copy.copy(self)
        offloaded = [tensor for tensor in held_tensors(self.home) if is_offloaded(tensor)]
        memo |= {id(tensor): self.room.copied(tensor) for tensor in offloaded}
        twin.room, twin.home = copy.deepcopy(self.room, memo), copy.deepcopy(self.home, memo)
        twin.staging = copy.deepcopy(self.staging, memo)
        twin.buffers = twin.staging.buffers
        if offloaded and self.staged:
            twin.staging.join(twin.layer_idx, twin.home)
        return twin

    def _near(self) -> Storage:
        """The storage where the model is."""
        return self.staging.near(self.layer_idx, self.room.device) if self.staged else self.home

    def _written(self) -> list[tuple[Storage, torch.device]]:
        """Where a token has to be written. At home last: by then the copy from there has arrived."""
        home = self.home, self.room.host
        return [(self._near(), self.room.device), home] if self.staged else [home]
