"""Transformers' `generate` on all requests as one batch, padded to the longest prompt: the stronger baseline.

A static batch starts when its last request has arrived and decodes until its longest is done; what the shorter ones
say after their own length is thrown away, and their padding is held like any other token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.engines.hf_generate import HFGenerate, generated
from pipeline.engines.serving import Request, Served, wait_for


class HFBatch(HFGenerate):
    def serve(self, requests: Sequence[Request]) -> Served:
        waited = wait_for(requests[-1], time.perf_counter())
        tokens, times, held = generated(self.model, requests)
        token_s = [[waited + at for at in times[: one.n_new_tokens]] for one in requests]
        return Served(tokens, token_s, kv_bytes_allocated=held, kv_bytes_used=held)
