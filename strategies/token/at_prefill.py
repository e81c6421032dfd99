"""The schedule that evicts once, right after the prompt; what is generated afterwards is kept on top of the budget."""

from __future__ import annotations


class AtPrefill:
    decides_once = True

    def allowed(self, n_tokens: int, kv_budget: int | None, *, prefill: bool) -> int:
        return min(n_tokens, kv_budget) if prefill and kv_budget is not None else n_tokens

    def capacity(self, n_tokens: int, kv_budget: int | None) -> int:
        return n_tokens
