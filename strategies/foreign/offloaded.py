"""Transformers' offloaded DynamicCache: layers wait in host memory, and the next one is fetched while one attends."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from strategies.foreign.dynamic import StockDynamicCache
from strategies.tensors import offloaded_bytes


class StockOffloadedCache(StockDynamicCache):
    @property
    def bytes_offloaded(self) -> int:
        return sum(offloaded_bytes(layer) for layer in self.layers)

    def uncopied(self) -> list[Any]:
        return [self.prefetch_stream]


def offloaded_cache(model: PreTrainedModel, *, kv_budget: None, headroom: int) -> StockDynamicCache:
    """It grows without limit; where there are only shapes nothing moves.

    Raises NotImplementedError without a CUDA device to fetch layers to.
    """
    if torch.cuda.is_available() and model.device.type == "meta":
        return StockDynamicCache(config=model.config)
    if not torch.cuda.is_available() or model.device.type == "cpu":
        why = "moves layers between a CUDA device and the host, and the model is not on one"
        raise NotImplementedError(f"strategy=hf_offloaded: {why}; valid: device=cuda")
    return StockOffloadedCache(config=model.config, offloading=True)
