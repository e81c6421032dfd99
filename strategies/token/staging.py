"""Two layers' room on the device, in turn: one is worked on while the next one is copied from the host."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from strategies.tensors import held_tensors
from strategies.token.parts import Storage

_ALIGNED = 256  # bytes; where each tensor of a layer may start


class Staging:
    """Copies of the storages at `homes`, by layer; they move whole, with the room for tokens that may follow.

    A copy of this object is an empty one: streams cannot be copied, and what was on its way is fetched again.
    """

    def __init__(self) -> None:
        self.homes: WeakValueDictionary[int, Storage] = WeakValueDictionary()  # a cache that is reset lets go of them
        self.n_bytes: dict[int, int] = {}  # of each home
        self.buffers: list[Tensor] = []  # uint8, as large as the largest layer
        self.twins: dict[tuple[int, int], Storage] = {}  # of (layer, buffer): its storage, with tensors in the buffer
        self.within: list[int | None] = [None, None]  # the layer that each buffer holds
        self.arrivals: list[Any] = [None, None]  # events
        self.stream: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Staging:
        return Staging()

    def join(self, layer_idx: int, home: Storage) -> None:
        """From now on this is the layer's storage."""
        self.forget(layer_idx)
        self.homes[layer_idx] = home
        self.n_bytes[layer_idx] = sum(math.ceil(tensor.nbytes / _ALIGNED) * _ALIGNED for tensor in held_tensors(home))

    def forget(self, layer_idx: int) -> None:
        """Before a layer's tensors change as a whole."""
        self._wait()
        self.homes.pop(layer_idx, None)
        self.n_bytes.pop(layer_idx, None)
        self.twins = {at: twin for at, twin in self.twins.items() if at[0] != layer_idx}
        self.within = [None if held == layer_idx else held for held in self.within]

    def near(self, layer_idx: int, device: torch.device) -> Storage:
        """The layer's storage on `device`; when this returns, the next layer is on its way."""
        self._fit(max(self.n_bytes.values()), device)
        order = sorted(self.homes)
        following = order[(order.index(layer_idx) + 1) % len(order)]
        at = self._fetch(layer_idx, beside=None)
        self._fetch(following, beside=layer_idx)
        if self.stream is not None:
            torch.cuda.current_stream(device).wait_event(self.arrivals[at])
        return self.twins[layer_idx, at]

    def _fetch(self, layer_idx: int, *, beside: int | None) -> int:
        """The buffer that holds the layer, or soon will; never that of the layer `beside`."""
        if layer_idx in self.within:
            return self.within.index(layer_idx)
        at = int(self.within[0] is not None and self.within[0] == beside)
        home = self.homes[layer_idx]
        views = _views(home, self.buffers[at])
        if (layer_idx, at) not in self.twins:
            self.twins[layer_idx, at] = copy.deepcopy(home, {id(tensor): view for tensor, view in views})
        if self.stream is not None:  # whoever used the buffer is done first
            self.stream.wait_stream(torch.cuda.current_stream(self.buffers[at].device))
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            for tensor, view in views:
                view.copy_(tensor, non_blocking=True)
            self.arrivals[at] = None if self.stream is None else self.stream.record_event()
        self.within[at] = layer_idx
        return at

    def _fit(self, n_bytes: int, device: torch.device) -> None:
        if self.buffers and self.buffers[0].numel() >= n_bytes:
            return
        self._wait()
        if device.type == "cuda" and self.stream is None:
            self.stream = torch.cuda.Stream(device)
        self.buffers[:] = [torch.empty(n_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self.twins, self.within = {}, [None, None]

    def _wait(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


def _views(home: Storage, buffer: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each tensor at home, and its place in the buffer."""
    views, start = [], 0
    for tensor in held_tensors(home):
        place = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        views.append((tensor, place))
        start += math.ceil(tensor.nbytes / _ALIGNED) * _ALIGNED
    return views
