"""The tensors behind a cache, and what they take where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def held_tensors(*holders: Any) -> Iterator[Tensor]:
    """The tensors that attributes hold, and those of our own parts in them."""
    known: set[int] = set()
    waiting = [held for holder in holders for held in vars(holder).values()]
    while waiting:
        item = waiting.pop()
        if is_traceable_wrapper_subclass(item):  # a quantised tensor, say: its bytes are those of its parts
            waiting += [getattr(item, name) for name in item.__tensor_flatten__()[0]]
        elif isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif hasattr(item, "bytes_of") and id(item) not in known:
            known.add(id(item))
            waiting += vars(item).values()


def tensor_bytes(*holders: Any) -> int:
    """Bytes that `holders` take on the model's device; each once, whoever holds it."""
    return _bytes(tensor for tensor in held_tensors(*holders) if not is_offloaded(tensor))


def offloaded_bytes(*holders: Any) -> int:
    """Bytes that lie elsewhere: in a file, or in the host's memory beside a model on another device."""
    return _bytes(tensor for tensor in held_tensors(*holders) if is_offloaded(tensor))


def is_offloaded(tensor: Tensor) -> bool:
    """Whether it is mapped from a file, or waits in pages of the host that a device copies from."""
    return tensor.is_cpu and (tensor.untyped_storage().filename is not None or tensor.is_pinned())


def _bytes(tensors: Iterator[Tensor]) -> int:
    """Storages are told apart by their own address: on the meta device those of the data are all the same."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
