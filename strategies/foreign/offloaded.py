"""Transformers' offloaded DynamicCache: layers wait in host memory, and the next one is fetched while one attends."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from strategies.foreign.dynamic import StockDynamicCache


class StockOffloadedCache(StockDynamicCache):
    def uncopied(self) -> list[Any]:
        return [self.prefetch_stream]


def offloaded_cache(model: PreTrainedModel, *, kv_budget: None, headroom: int) -> StockOffloadedCache:
    """It grows without limit. Raises NotImplementedError without a CUDA device to fetch layers to."""
    if not torch.cuda.is_available() or model.device.type == "cpu":
        why = "moves layers between a CUDA device and the host, and the model is not on one"
        raise NotImplementedError(f"strategy=hf_offloaded: {why}; valid: device=cuda")
    return StockOffloadedCache(config=model.config, offloading=True)
