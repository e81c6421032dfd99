"""The schedule that keeps the budget at all times: after prefill and in every decode step."""

from __future__ import annotations


class EveryStep:
    decides_once = False

    def allowed(self, n_tokens: int, kv_budget: int | None, *, prefill: bool) -> int:
        return n_tokens if kv_budget is None else min(n_tokens, kv_budget)

    def capacity(self, n_tokens: int, kv_budget: int | None) -> int:
        return self.allowed(n_tokens, kv_budget, prefill=False)
