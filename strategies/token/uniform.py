"""Uniform allocation: every layer and head holds the same number of tokens."""

from __future__ import annotations


class UniformAllocation:
    def __call__(self, kv_budget: int, n_layers: int, *, n_tokens: int | None, n_protected: int) -> list[int]:
        """Mean budget in tokens per KV head → budget of each layer."""
        return [kv_budget] * n_layers
