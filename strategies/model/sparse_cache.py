"""The cache of a model with sparse attention: what no later query can see is written over.

Shapes: B batch, Hq query heads, H KV heads, T new tokens, D head_dim.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from strategies.attention import grouped_attention
from strategies.model.blockwise import sparse_attention
from strategies.model.patterns import Pattern
from strategies.model.plan import Plan, planned, read_slots
from strategies.tensors import tensor_bytes


class SparseCache(Cache):
    """One layer per layer; the layers attend, so the model's attention is left as it is."""

    layers: list[Any]

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[SparseCache]:
        return nullcontext(self)

    @property
    def attention_kwargs(self) -> dict[str, Any]:
        return {}

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that the newest query or a later one sees, all layers and batch rows."""
        return sum(layer.bytes_logical for layer in self.layers)

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated for it, all layers and batch rows, tables included."""
        plans = {id(layer.plan): layer.plan for layer in self.layers if isinstance(layer, PatternLayer)}
        return tensor_bytes(*self.layers, *(plan for plan in plans.values() if plan is not None))

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0  # only masks ask, and the layers have their own


class OwnLayer(CacheLayerMixin):
    """Keys and values [B, H, capacity, D] for a prompt and at most `headroom` tokens after it."""

    keys: Tensor  # from the first attention on
    values: Tensor
    is_sliding = False
    supports_early_init = False  # shapes come with the first keys

    def __init__(self, headroom: int) -> None:
        if headroom < 1:
            raise ValueError(f"headroom={headroom}: no room for the token that follows a prompt; valid: 1 or more")
        super().__init__()
        self.headroom = headroom
        self.n_seen = 0
        self.horizon = 0

    @property
    @abstractmethod
    def bytes_logical(self) -> int: ...

    def advance(self, n_new: int) -> None:
        """Count `n_new` tokens. Raises ValueError where more come than there is room for."""
        horizon = self.horizon or n_new + self.headroom
        if self.n_seen + n_new > horizon:
            raise ValueError(f"headroom={self.headroom}: more tokens follow the prompt, and what they see may be gone; "
                             f"valid: {self.headroom + self.n_seen + n_new - horizon} or more")  # fmt: skip
        self.n_seen, self.horizon = self.n_seen + n_new, horizon

    def allocate(self, key: Tensor, value: Tensor, capacity: int) -> None:
        self.keys = key.new_empty((*key.shape[:2], capacity, key.shape[3]))
        self.values = value.new_empty((*value.shape[:2], capacity, value.shape[3]))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass  # with the first attention, which knows the length of the prompt

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise ValueError("past_key_values=SparseCache: only models with sparse attention know how to use it; "
                         "valid: the model whose `new_cache` made it")  # fmt: skip

    def get_seq_length(self) -> int:
        return self.n_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = None  # type: ignore[assignment]
        self.n_seen = self.horizon = 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(f"crop({tokens_to_remove}): a token that was dropped cannot be brought back; "
                         "valid: a new cache")  # fmt: skip


class PatternLayer(OwnLayer):
    """Holds what `pattern` still lets a query see, in slots that are planned once for all layers of one pattern."""

    def __init__(self, pattern: Pattern, headroom: int) -> None:
        super().__init__(headroom)
        self.pattern = pattern
        self.plan: Plan | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """query [B, Hq, T, D] and the new key, value [B, H, T, D] → [B, Hq, T, D]; the new tokens are held after.

        Raises ValueError where more tokens follow the prompt than there is room for.
        """
        n_before, n_new = self.n_seen, key.shape[2]
        self.advance(n_new)
        if self.plan is None:
            self.plan = planned(self.pattern, n_new, self.horizon)
            self.allocate(key, value, max(self.plan.n_used))
            output = sparse_attention(self.pattern, query, key, value, scaling=scaling)
        elif n_new == 1:
            slot = self.plan.new_slots[n_before - self.plan.n_prompt]
            self.keys[:, :, slot], self.values[:, :, slot] = key[:, :, 0], value[:, :, 0]
            return self._look(self.plan, query, n_before, scaling)
        else:
            output = self._append(self.plan, query, key, value, n_before, scaling)
        positions, slots = (index.to(key.device) for index in self._new(self.plan, n_before))
        self.keys[:, :, slots], self.values[:, :, slots] = key[:, :, positions], value[:, :, positions]
        return output

    def _look(self, plan: Plan, query: Tensor, position: int, scaling: float) -> Tensor:
        slots = read_slots(self.pattern, plan, position, query.device)
        if slots is None:
            n_used = plan.n_used[position + 1 - plan.n_prompt]
            key, value = self.keys[:, :, :n_used], self.values[:, :, :n_used]
        else:
            key, value = self.keys.index_select(2, slots), self.values.index_select(2, slots)
        return grouped_attention(query, key, value, None, scaling=scaling)

    def _append(self, plan: Plan, query: Tensor, key: Tensor, value: Tensor, n_before: int, scaling: float) -> Tensor:
        """Several tokens at once see what was held before them, and each other."""
        positions, slots = plan.held(n_before)
        new = torch.arange(n_before, self.n_seen)
        mask = self.pattern.visible(new[:, None], torch.cat([positions, new])).to(key.device)
        slots = slots.to(key.device)
        key = torch.cat([self.keys[:, :, slots], key], 2)
        value = torch.cat([self.values[:, :, slots], value], 2)
        return grouped_attention(query, key, value, mask[None, None], scaling=scaling)

    def _new(self, plan: Plan, n_before: int) -> tuple[Tensor, Tensor]:
        """Of the tokens since `n_before`, those that stay: their places among them, and their slots."""
        positions, slots = plan.held(self.n_seen)
        return positions[positions >= n_before] - n_before, slots[positions >= n_before]

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that the newest query or a later one sees."""
        if self.plan is None:
            return 0
        n_alive = self.plan.n_alive[self.n_seen - self.plan.n_prompt]
        return n_alive * (self.keys[:, :, 0].nbytes + self.values[:, :, 0].nbytes)

    def reset(self) -> None:
        super().reset()
        self.plan = None
