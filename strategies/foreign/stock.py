"""What every cache of Transformers needs to be measured beside ours: its bytes, and an attention left as it is."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from strategies.model.states import require_attention
from strategies.tensors import tensor_bytes


class StockAttention:
    """Mixed into a cache class: the model attends as it always does, and the cache is asked for its bytes."""

    layers: list[Any]

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Changes nothing, for a cache that the stock attention knows how to use. Raises ValueError where none is."""
        require_attention(model)
        return nullcontext(self)

    @property
    def attention_kwargs(self) -> dict[str, Any]:
        return {}

    def uncopied(self) -> list[Any]:
        """What a copy shares with its original, because it cannot be copied and need not be."""
        return []

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo |= {id(item): item for item in self.uncopied()}
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept, all layers and batch rows."""
        kept = [tensor for layer in self.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in kept)

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated for it on any device, all layers and batch rows."""
        return sum(tensor_bytes(layer) for layer in self.layers)


def require_full_attention(model: PreTrainedModel, technique: str) -> None:
    """Raises ValueError, naming the model, where a layer has a window or a state of its own."""
    others = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {DynamicLayer.__name__}
    if others:
        raise ValueError(f"model={type(model).__name__}: {technique} does not replace {', '.join(sorted(others))}; "
                         "valid: a model whose layers all attend to everything")  # fmt: skip
