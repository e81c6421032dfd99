"""One way to feed tokens to a model, whether a cache holds the past or the past is computed again.

Shapes: B sequences, T tokens fed now, V vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Decoder:
    """A batch of equally long sequences on their way through `model`.

    `cache`: a Transformers `Cache` that also says how it attends (`attached`, `attention_kwargs`) and what it holds
    (`bytes_held`, `bytes_logical`). None recomputes the whole sequence at each feed and keeps only token ids: the
    reference without a cache.

    Use as a context manager: the cache attaches its attention on entry and gives the model back on exit; entering
    again later continues the same sequences.
    """

    def __init__(self, model: PreTrainedModel, cache: Any | None) -> None:
        self.model = model
        self.cache = cache
        self.n_seen = 0 if cache is None else int(cache.get_seq_length())
        self._past_ids_BT: Tensor | None = None
        self._attached = ExitStack()

    def __enter__(self) -> Decoder:
        if self.cache is not None:
            self._attached.enter_context(self.cache.attached(self.model))
        return self

    def __exit__(self, *error: object) -> None:
        self._attached.close()

    @property
    def kv_bytes_held(self) -> int:
        return 0 if self.cache is None else int(self.cache.bytes_held)

    @property
    def kv_bytes_logical(self) -> int:
        return 0 if self.cache is None else int(self.cache.bytes_logical)

    @property
    def kv_bytes_offloaded(self) -> int:
        """What lies outside the model's device, beside `kv_bytes_held`; a cache that moves nothing does not say so."""
        return int(getattr(self.cache, "bytes_offloaded", 0))

    @property
    def stays_on_device(self) -> bool:
        """Whether a step is all the device's own work; what waits on the host, beside a GPU, takes part in it."""
        elsewhere = self.kv_bytes_offloaded or getattr(self.cache, "offloading", False)
        return self.model.device.type == "cpu" or not elsewhere

    def foresee(self, ids_BT: Tensor, n_prompt: int) -> None:
        """Show a cache that asks for it what will follow: `ids_BT` starts with the prompt, which is fed afterwards."""
        if self.cache is not None and hasattr(self.cache, "foresee"):
            self.cache.foresee(self.model, ids_BT, n_prompt)

    @torch.inference_mode()
    def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
        """Append tokens; float logits after the last one [B, V], or after each one [B, T, V]."""
        n_logits = ids_BT.shape[1] if all_logits else 1
        logits = self._recompute(ids_BT, n_logits) if self.cache is None else self._append(ids_BT, n_logits)
        self.n_seen += ids_BT.shape[1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if all_logits else logits[:, -1]

    def teacher_force(self, ids_BT: Tensor) -> Tensor:
        """Append tokens one by one, as if they had been generated; logits after each one [B, T, V]."""
        if self.cache is None:  # attention is causal: one recomputation holds what every step would compute
            return self.feed(ids_BT, all_logits=True)
        return torch.stack([self.feed(ids_B1) for ids_B1 in ids_BT.split(1, dim=1)], dim=1)

    def _append(self, ids_BT: Tensor, n_logits: int) -> Tensor:
        assert self.cache is not None
        return self.model(
            input_ids=ids_BT,
            position_ids=self._positions(ids_BT, start=self.n_seen),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=n_logits,
            **self.cache.attention_kwargs,
        ).logits

    def _recompute(self, ids_BT: Tensor, n_logits: int) -> Tensor:
        if self._past_ids_BT is not None:
            ids_BT = torch.cat([self._past_ids_BT, ids_BT], dim=1)
        self._past_ids_BT = ids_BT
        return self.model(
            input_ids=ids_BT,
            position_ids=self._positions(ids_BT, start=0),
            use_cache=False,
            logits_to_keep=n_logits,
        ).logits

    @staticmethod
    def _positions(ids_BT: Tensor, start: int) -> Tensor:
        return torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape)
