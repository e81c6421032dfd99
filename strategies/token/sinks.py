"""Attention sinks: the first tokens and the newest ones (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SinkScorer:
    """Keeps `n_sinks` first tokens and fills the rest of the budget with the newest.

    As in the paper, rotary positions are counted inside the cache, so a stream may be longer than the model was
    trained for. Only the sinks' keys ever need moving: distances inside the window do not change. With learned
    positions (GPT-2) keys cannot be moved; true positions stay, and the stream ends with the table.
    """

    n_sinks: int = 4
    window_size: int = 0
    in_cache_positions: bool = True
    contiguous: bool = True

    def __post_init__(self) -> None:
        if self.n_sinks < 1:
            raise ValueError(f"scorer.n_sinks={self.n_sinks}: at least one first token must stay; valid: 1 or more")

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        return position
