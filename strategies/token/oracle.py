"""The upper bound: keep what will be attended to, known because the future is looked at first."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from strategies.attention import attached, causal_attention
from strategies.observed import attention_received

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
        Scout(n_prompt)
        if foresees(getattr(getattr(layer, "retention", None), "scorer", None))
        else copy.deepcopy(layer)
        for layer in cache.layers
    ]
    scouts = type(cache)(layers=layers)
    with attached(model, scouts):
        model(input_ids=ids, past_key_values=scouts, logits_to_keep=1, **scouts.attention_kwargs)
    return [layer.received for layer in layers if isinstance(layer, Scout)]


class Scout(CacheLayerMixin):
    """Attends to a whole text as without a cache, and remembers who looked back at the prompt; holds no tokens."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, n_prompt: int) -> None:
        super().__init__()
        self.n_prompt = n_prompt

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        later = torch.arange(self.n_prompt, key.shape[2], device=key.device)
        received = attention_received(query[:, :, self.n_prompt :], key, later, None, **how)
        self.received = received[..., : self.n_prompt]
        return causal_attention(query, key, value, **how)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1
