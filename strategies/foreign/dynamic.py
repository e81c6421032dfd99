"""Transformers' DynamicCache, what every model uses by default: each step copies all keys and values to append one."""

from __future__ import annotations

from transformers import DynamicCache, PreTrainedModel

from strategies.foreign.stock import StockAttention


class StockDynamicCache(StockAttention, DynamicCache):
    pass


def dynamic_cache(model: PreTrainedModel, *, kv_budget: None, headroom: int) -> StockDynamicCache:
    """It grows without limit, so neither a budget nor headroom means anything to it."""
    return StockDynamicCache(config=model.config)
