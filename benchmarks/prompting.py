"""Ways to take a prompt other than in one go; what follows the prompt is fed as ever.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.decoding import Decoder


class Widened(Decoder):
    """Reads one row of the prompt and copies what it then holds to all B rows: their decode steps cost what they cost
    after B prompts of their own, and the prompt costs what one does.
    """

    def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
        if self.n_seen or len(ids_BT) == 1:
            return super().feed(ids_BT, all_logits)
        logits = super().feed(ids_BT[:1], all_logits)
        with torch.inference_mode():
            self.cache.reorder_cache(torch.zeros(len(ids_BT), dtype=torch.long, device=ids_BT.device))
        return logits.expand(len(ids_BT), *logits.shape[1:])


class Streamed(Decoder):
    """Reads the first `n_tokens` of the prompt in chunks, as a stream that is longer than the cache would arrive."""

    CHUNK = 1024

    def __init__(self, model: PreTrainedModel, cache: Any, n_tokens: int) -> None:
        super().__init__(model, cache)
        self.n_tokens = n_tokens

    def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
        if self.n_seen:
            return super().feed(ids_BT, all_logits)
        *_, last = (
            super(Streamed, self).feed(chunk, all_logits)
            for chunk in ids_BT[:, : self.n_tokens].split(self.CHUNK, dim=1)
        )
        return last
