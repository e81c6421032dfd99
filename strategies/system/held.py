"""What a model holds, by walking its storages: also those that hang on a parameter, as bitsandbytes' scales do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

TABLES, QUANTISED, FULL = "embeddings and head", "blocks: quantised", "blocks: full precision"
_NO_WEIGHTS = ("module", "idx")  # of a parameter, whose it is; of an 8-bit layer, which inputs last stood out


def held_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters, buffers and scales, each storage once; a model on meta says what it would hold."""
    return sum(by_component(model).values())


def by_component(model: PreTrainedModel) -> dict[str, int]:
    """The bytes apart: the tables, what stands for quantised matrices, and what has the model's own dtype.

    The last is norms, biases, rotary frequencies, and any matrix that no transform holds. What embeddings and the head
    share is counted once, under the first.
    """
    bytes_of = {TABLES: 0, QUANTISED: 0, FULL: 0}
    known: set[int] = set()
    head = model.get_output_embeddings()
    for module in model.modules():
        is_table = isinstance(module, nn.Embedding) or module is head
        is_quantised = not is_table and any(_is_code(tensor) for _, tensor in _own(module))
        for name, tensor in _own(module):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:  # their own address: on the meta device those of the data are all the same
                known.add(storage._cdata)
                part = TABLES if is_table else QUANTISED if is_quantised and name != "bias" else FULL
                bytes_of[part] += storage.nbytes()
    return bytes_of


def _is_code(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype.itemsize == 1


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module, not of its children, by the name of the attribute that they hang on."""
    attributes = vars(module)
    for name, held in {**attributes, **attributes["_parameters"], **attributes["_buffers"]}.items():
        yield from ((name, tensor) for tensor in _tensors(held))


def _tensors(held: Any) -> Iterator[Tensor]:
    """The tensor itself, and those of the states that bitsandbytes keeps beside it, one in another."""
    if isinstance(held, Tensor):
        yield held
    if isinstance(held, Tensor) or type(held).__module__.startswith("bitsandbytes."):
        for name, each in vars(held).items():
            if name not in _NO_WEIGHTS:
                yield from _tensors(each)
