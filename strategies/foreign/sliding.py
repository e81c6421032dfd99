"""Transformers' sliding-window layers under a model that attends to everything (Longformer, arXiv 2004.05150).

A layer holds one token less than the window between steps, since the next one joins it before it attends; so a step
sees as many tokens as with a budget of ours. Each step copies the whole window.
"""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from strategies.foreign.dynamic import StockDynamicCache
from strategies.foreign.stock import require_full_attention


def sliding_cache(model: PreTrainedModel, *, kv_budget: int | None, headroom: int) -> StockDynamicCache:
    """`kv_budget`: the window in tokens; None keeps all. It grows as it needs, so headroom means nothing to it.

    Raises ValueError for a model with other than full attention, and for a window that leaves no past.
    """
    require_full_attention(model, "hf_sliding")
    cache = StockDynamicCache(config=model.config)
    if kv_budget is not None:
        if kv_budget < 2:
            raise ValueError(f"kv_budget={kv_budget}: the new token alone would fill the window; valid: 2 or more")
        cache.layers = [DynamicSlidingWindowLayer(kv_budget) for _ in cache.layers]
    return cache
