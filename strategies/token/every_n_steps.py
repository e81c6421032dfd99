"""The schedule that lets the cache grow for some steps and then evicts down to the budget at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EveryNSteps:
    """After the prompt, and whenever `n_steps` tokens lie on top of the budget."""

    n_steps: int = 32
    decides_once: bool = False

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"schedule.n_steps={self.n_steps}: not possible; valid: 1 or more")

    def allowed(self, n_tokens: int, kv_budget: int | None, *, prefill: bool) -> int:
        if kv_budget is None or (not prefill and n_tokens < kv_budget + self.n_steps):
            return n_tokens
        return min(n_tokens, kv_budget)

    def capacity(self, n_tokens: int, kv_budget: int | None) -> int:
        return n_tokens if kv_budget is None else min(n_tokens, kv_budget + self.n_steps - 1)
