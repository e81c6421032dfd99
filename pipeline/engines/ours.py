"""Our decoding loop, with the cache of any strategy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from pipeline.decoding import Decoder
from pipeline.engines.serving import InProcess, Loaded, Request, Served, wait_for


class Ours(InProcess):
    """Requests of one prompt length are one batch, from the arrival of the last until the longest is done; our caches
    refuse padding.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.device = loaded.model.device
        self.new_decoder = loaded.new_decoder
        self.is_exact = loaded.is_lossless

    def serve(self, requests: Sequence[Request]) -> Served:
        groups: dict[int, list[int]] = {}
        for index, one in enumerate(requests):
            groups.setdefault(len(one.prompt), []).append(index)
        tokens: list[list[int]] = [[] for _ in requests]
        token_s: list[list[float]] = [[] for _ in requests]
        started, allocated, used = time.perf_counter(), 0, 0
        for group in sorted(groups.values(), key=lambda members: members[-1]):
            batch = [requests[index] for index in group]
            wait_for(batch[-1], started)
            decoder = self.new_decoder(max(one.n_new_tokens for one in batch))
            for now, row_of_each in _steps(decoder, batch, self.device):
                for index, token in zip(group, row_of_each, strict=True):
                    if len(tokens[index]) < requests[index].n_new_tokens:
                        tokens[index].append(token)
                        token_s[index].append(now - started)
            allocated, used = max(allocated, decoder.kv_bytes_held), max(used, decoder.kv_bytes_logical)
        return Served(tokens, token_s, kv_bytes_allocated=allocated, kv_bytes_used=used)


def _steps(decoder: Decoder, batch: Sequence[Request], device: torch.device) -> Iterator[tuple[float, list[int]]]:
    """When the next token of all sequences was there, and what it is for each."""
    fed_BT = torch.tensor([one.prompt for one in batch], device=device)
    with decoder:
        for _ in range(max(one.n_new_tokens for one in batch)):
            fed_BT = decoder.feed(fed_BT).argmax(-1, keepdim=True)
            said = fed_BT[:, 0].tolist()  # handed out, which waits for the device
            yield time.perf_counter(), said
