"""What the weights of a model take: the tensors that hold them, whatever they are held in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

TABLES, QUANTISED, PLAIN = "embeddings and head", "quantised layers", "other layers"


def held(model: PreTrainedModel) -> dict[str, int]:
    """Bytes by component: a layer with integers counts as quantised, with its scales, bias and corrections.

    Tied weights count once. What a forward pass derives (rotary frequencies, masks) is no weight.
    """
    tables = {id(table) for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    bytes_of = {TABLES: 0, QUANTISED: 0, PLAIN: 0}
    counted: set[int] = set()
    for module in model.modules():
        tensors = list(_own(module))
        quantised = any(not tensor.is_floating_point() for tensor in tensors)
        component = TABLES if id(module) in tables else QUANTISED if quantised else PLAIN
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                bytes_of[component] += storage.nbytes()
    return bytes_of


def _own(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and lasting buffers of `module` itself, and the tensors that libraries hang on to them."""
    derived = module._non_persistent_buffers_set
    waiting: list[Any] = [*module._parameters.values()]
    waiting += [buffer for name, buffer in module._buffers.items() if name not in derived]
    waiting += [value for value in vars(module).values() if _is_foreign_state(value)]
    known: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in known or item is None:
            continue
        known.add(id(item))
        if isinstance(item, Tensor):
            yield item
        if isinstance(item, Tensor) or _is_foreign_state(item):
            waiting += [value for value in vars(item).values() if isinstance(value, Tensor) or _is_foreign_state(value)]


def _is_foreign_state(value: Any) -> bool:
    """An object of bitsandbytes that holds what its weights are coded with."""
    return type(value).__module__.partition(".")[0] == "bitsandbytes" and hasattr(value, "__dict__")
