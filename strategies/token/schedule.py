"""What every schedule offers."""

from __future__ import annotations

from typing import Protocol


class Schedule(Protocol):
    def allowed(self, n_tokens: int, kv_budget: int | None, *, prefill: bool) -> int:
        """How many of `n_tokens` may stay, right after the prompt (`prefill`) or in any later step."""
        ...
