"""Where a cache layer would stand: it attends to a whole text as without a cache, and remembers what it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from strategies.attention import causal_attention


class Scout(CacheLayerMixin):
    """`look(query, key, value, **how)` is called once per text, and what it returns is `seen`. Holds no tokens."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, look: Callable[..., Any]) -> None:
        super().__init__()
        self.look = look

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        self.seen = self.look(query, key, value, **how)
        return causal_attention(query, key, value, **how)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1
