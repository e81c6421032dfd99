"""The upper bound: keep what will be attended to, known because the future is looked at first."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from strategies.attention import attached
from strategies.observed import attention_received
from strategies.scout import Scout

if TYPE_CHECKING:
    from strategies.cache import SlotCache


@dataclass(frozen=True)
class OracleScorer:
    """A token's score is the attention that all tokens after the prompt pay to it with the full cache, per KV head.

    No technique can have this: `SlotCache.foresee` is given the tokens that will follow. What a full cache attends to
    is the bound for scorers that go by attention, not for everything that could be kept.
    """

    n_sinks: int = 0
    window_size: int = 0
    in_cache_positions: bool = False
    contiguous: bool = False
    prompt_only: bool = True
    foresees: bool = True

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        """Raises ValueError for a prompt whose future was not shown."""
        if key.shape[2] > 1:
            raise ValueError("scorer=OracleScorer: does not know what follows; valid: cache.foresee(model, ids, "
                             "n_prompt) before the prompt is fed")  # fmt: skip
        return key.new_zeros(key.shape[:3], dtype=torch.promote_types(key.dtype, torch.float32))


def foresees(scorer: object) -> bool:
    return bool(getattr(scorer, "foresees", False))


@torch.inference_mode()
def future_attention(model: PreTrainedModel, cache: SlotCache, ids: Tensor, n_prompt: int) -> list[Tensor]:
    """Of each layer that foresees: what each of the first n_prompt of `ids` [B, T] receives from the rest [B, H, N]."""
    layers: list[Any] = [
        Scout(partial(_received, n_prompt=n_prompt))
        if foresees(getattr(getattr(layer, "retention", None), "scorer", None))
        else copy.deepcopy(layer)
        for layer in cache.layers
    ]
    scouts = type(cache)(layers=layers)
    with attached(model, scouts):
        model(input_ids=ids, past_key_values=scouts, logits_to_keep=1, **scouts.attention_kwargs)
    return [layer.seen for layer in layers if isinstance(layer, Scout)]


def _received(query: Tensor, key: Tensor, value: Tensor, *, n_prompt: int, **how: Any) -> Tensor:
    """What the first `n_prompt` keys receive from all later queries [B, H, n_prompt]."""
    later = torch.arange(n_prompt, key.shape[2], device=key.device)
    return attention_received(query[:, :, n_prompt:], key, later, None, **how)[..., :n_prompt]
