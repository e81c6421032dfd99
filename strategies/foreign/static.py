"""Transformers' StaticCache: preallocated and written in place, but attended over its whole length in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from strategies.foreign.stock import StockAttention, require_full_attention


class LateStaticLayer(StaticLayer):
    """A StaticLayer that fixes its length when the prompt comes: as long as that, and `headroom` tokens more."""

    supports_early_init = False  # the prompt's length is not known before it is there
    cumulative_length: Any  # a tensor here, though an int in other layers

    def __init__(self, headroom: int) -> None:
        super().__init__(max_cache_len=0)
        self.headroom = headroom
        self.n_filled = 0  # as `cumulative_length`, which lies on the device, and has no value on the meta device

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if not self.is_initialized:  # the first mask is made before the first keys are
            self.max_cache_len = query_length + self.headroom
        return super().get_mask_sizes(query_length)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.max_cache_len = key_states.shape[2] + self.headroom
        super().lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raises ValueError where it is full. On CUDA the length is on the device, and its kernel stops instead."""
        if self.is_initialized and self.device.type == "cpu":
            length = int(self.cumulative_length) + key_states.shape[2]
            if length > self.max_cache_len:
                raise ValueError(f"headroom={self.headroom}: no room for token {length} in {self.max_cache_len}; "
                                 "valid: as many as will follow the prompt")  # fmt: skip
        self.n_filled += key_states.shape[2]
        return super().update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        """Gives the memory back, since the next prompt may be a longer one."""
        self.keys = self.values = None
        self.cumulative_length = torch.zeros_like(self.cumulative_length)
        self.is_initialized = False
        self.n_filled = 0


class StockStaticCache(StockAttention, Cache):
    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept: the front of what is allocated."""
        filled = [(layer, layer.n_filled) for layer in self.layers if layer.is_initialized]
        return sum(layer.keys[:, :, :n].nbytes + layer.values[:, :, :n].nbytes for layer, n in filled)


def static_cache(model: PreTrainedModel, *, kv_budget: None, headroom: int) -> StockStaticCache:
    """`headroom`: tokens that may follow the prompt. Raises ValueError for a model with other than full attention."""
    require_full_attention(model, "hf_static")
    return StockStaticCache(layers=[LateStaticLayer(headroom) for _ in range(model.config.num_hidden_layers)])
