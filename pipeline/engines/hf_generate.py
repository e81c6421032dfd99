"""Transformers' `generate`, one request after another: what most scripts do, and the first baseline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from pipeline.engines.serving import InProcess, Loaded, Request, Served, wait_for


class Clock(BaseStreamer):
    """When each new token of a batch was handed out, in seconds since it was made; what comes first is the prompt."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seen: list[float] = []

    def put(self, value: Tensor) -> None:
        self._seen.append(time.perf_counter() - self._started)

    def end(self) -> None:
        pass

    @property
    def token_s(self) -> list[float]:
        return self._seen[1:]


class HFGenerate(InProcess):
    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model

    def serve(self, requests: Sequence[Request]) -> Served:
        started, tokens, token_s, held = time.perf_counter(), [], [], 0
        for request in requests:
            waited = wait_for(request, started)
            rows, times, kv_bytes = generated(self.model, [request])
            tokens += rows
            token_s.append([waited + at for at in times])
            held = max(held, kv_bytes)
        return Served(tokens, token_s, kv_bytes_allocated=held, kv_bytes_used=held)


@torch.inference_mode()
def generated(model: PreTrainedModel, requests: Sequence[Request]) -> tuple[list[list[int]], list[float], int]:
    """One batch, padded on the left, until its longest request is done: tokens, times, bytes of keys and values."""
    longest = max(len(one.prompt) for one in requests)
    n_new = max(one.n_new_tokens for one in requests)
    padding = [longest - len(one.prompt) for one in requests]
    ids = [[0] * pad + one.prompt for pad, one in zip(padding, requests, strict=True)]
    mask = [[0] * pad + [1] * len(one.prompt) for pad, one in zip(padding, requests, strict=True)]
    clock, cache = Clock(), DynamicCache(config=model.config)
    answer = model.generate(  # type: ignore[operator]
        torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        past_key_values=cache,
        max_new_tokens=n_new,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    rows = answer[:, longest:].tolist()
    return [row[: one.n_new_tokens] for row, one in zip(rows, requests, strict=True)], clock.token_s, _bytes(cache)


def _bytes(cache: DynamicCache) -> int:
    layers: list[Any] = cache.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
