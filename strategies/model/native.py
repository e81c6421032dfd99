"""The cache that an architecture's own decoding holds: nothing is evicted or compressed that the model itself keeps."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from strategies import cache
from strategies.model.latent import LatentCache, is_latent
from strategies.model.states import build_state_cache, has_no_attention
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.drop import Drop
from strategies.token.never import Never
from strategies.token.recency import RecencyScorer
from strategies.token.uniform import UniformAllocation
from strategies.token.unshared import Unshared


def build_cache(model: PreTrainedModel, *, kv_budget: int | None, headroom: int = 256) -> Any:
    """An empty cache for `model`: what its class brings along, a state where there is no attention, latents where
    attention is latent, else slots for all that its layers can see, in which a window of the model's own holds just
    its tokens.

    `headroom`: tokens that may follow a prompt before storage is allocated anew; a state needs none. Raises ValueError
    for a budget, and for a model whose state is none of these.
    """
    if kv_budget is not None:
        raise ValueError(f"kv_budget={kv_budget}: an architecture keeps what it keeps; valid: null")
    own: Any = getattr(model, "new_cache", None)
    if own is not None:
        return own(headroom)
    if has_no_attention(model):
        return build_state_cache(model)
    if is_latent(model):
        return LatentCache(model, headroom)
    return cache.build_cache(
        model,
        kv_budget=None,
        headroom=headroom,
        scorer=RecencyScorer(),
        allocation=UniformAllocation(),
        schedule=Never(),
        on_evict=Drop(),
        encoding=DenseStorage,
        sharing=Unshared(),
        placement=Contiguous(),
    )
