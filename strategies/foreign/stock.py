"""What every cache of Transformers needs to be measured beside ours: its bytes, and an attention left as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from strategies.model.states import require_attention
from strategies.tensors import tensor_bytes


class StockAttention:
    """Mixed into a cache class: the model attends as it always does, and the cache is asked for its bytes."""

    layers: list[Any]

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Changes nothing, for a cache that the stock attention knows how to use. Raises ValueError where none is."""
        require_attention(model)
        return _captured_alike(self) if model.device.type == "cuda" else nullcontext(self)

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

    def reset(self) -> None:
        """As new, also in Transformers 5.17, whose own layers would keep all tokens and fill them with zeros."""
        for layer in self.layers:
            layer.keys, layer.values, layer.is_initialized = None, None, False
            layer.reset()

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept, all layers and batch rows."""
        kept = [tensor for layer in self.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in kept)

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated for it on any device, all layers and batch rows."""
        return sum(tensor_bytes(layer) for layer in self.layers)


@contextmanager
def _captured_alike(cache: StockAttention) -> Iterator[StockAttention]:
    """Let a step that is captured as a CUDA graph be the one that is launched otherwise.

    While it captures, Transformers makes a mask for a single query too, one that hides nothing, with which keys and
    values are repeated for every query head.
    """
    before = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = _mask
    try:
        yield cache
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = before


def _mask(*, q_length: int, attention_mask: Tensor | None = None, **how: Any) -> Tensor | None:
    sees_all = q_length == 1 and attention_mask is None and how.get("local_size") is None
    if sees_all and how.get("allow_is_causal_skip", True) and torch.cuda.is_current_stream_capturing():
        return None
    return sdpa_mask(q_length=q_length, attention_mask=attention_mask, **how)


def require_full_attention(model: PreTrainedModel, technique: str) -> None:
    """Raises ValueError, naming the model, where a layer has a window or a state of its own."""
    others = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {DynamicLayer.__name__}
    if others:
        raise ValueError(f"model={type(model).__name__}: {technique} does not replace {', '.join(sorted(others))}; "
                         "valid: a model whose layers all attend to everything")  # fmt: skip
