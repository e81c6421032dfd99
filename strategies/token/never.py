"""The schedule that never evicts: the full cache."""

from __future__ import annotations


class Never:
    decides_once = True

    def allowed(self, n_tokens: int, kv_budget: int | None, *, prefill: bool) -> int:
        return n_tokens

    def capacity(self, n_tokens: int, kv_budget: int | None) -> int:
        return n_tokens
