"""What the weights of a model take: the tensors that hold them, whatever they are held in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

TABLES, QUANTISED, PLAIN = "embeddings and head", "quantised layers", "other layers"


def held(model: PreTrainedModel) -> dict[str, int]:
    """Bytes by component: what stands for a matrix in integer codes is quantised, scales and corrections included.

    Tied weights count once. What a forward pass derives (rotary frequencies, masks) is no weight.
    """
    head = model.get_output_embeddings()
    bytes_of = {TABLES: 0, QUANTISED: 0, PLAIN: 0}
    counted: set[int] = set()
    for module in model.modules():
        tensors = list(_own(module))
        is_table = isinstance(module, nn.Embedding) or module is head
        is_quantised = any(not tensor.is_floating_point() for _, tensor in tensors)
        for name, tensor in tensors:
            storage = tensor.untyped_storage()
            if (
                storage._cdata not in counted
            ):  # their own address: on the meta device those of the data are all the same
                counted.add(storage._cdata)
                component = TABLES if is_table else QUANTISED if is_quantised and name != "bias" else PLAIN
                bytes_of[component] += storage.nbytes()
    return bytes_of


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and lasting buffers of `module` itself, and the tensors that libraries hang on to them, by name."""
    derived = module._non_persistent_buffers_set
    attributes: dict[str, Any] = dict(module._parameters)
    attributes |= {name: buffer for name, buffer in module._buffers.items() if name not in derived}
    attributes |= {name: value for name, value in vars(module).items() if _is_foreign_state(value)}
    for name, value in attributes.items():
        yield from ((name, tensor) for tensor in _tensors(value))


def _tensors(item: Any) -> Iterator[Tensor]:
    """The tensor itself, and those of the states that bitsandbytes keeps beside it, one in another."""
    if isinstance(item, Tensor):
        yield item
    if isinstance(item, Tensor) or _is_foreign_state(item):
        for value in vars(item).values():
            if isinstance(value, Tensor) or _is_foreign_state(value):
                yield from _tensors(value)


def _is_foreign_state(value: Any) -> bool:
    """An object of bitsandbytes that holds what its weights are coded with."""
    ours = isinstance(value, nn.Module)  # a layer has a place of its own in the model
    return type(value).__module__.startswith("bitsandbytes.") and hasattr(value, "__dict__") and not ours
