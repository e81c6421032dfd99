"""What an engine says beside what the model says, as Transformers computes it with plain keys and values.

Shapes: N tokens that were said, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.serving import Loaded, Request, Served
from pipeline.engines.vllm import VLLM
from pipeline.record import Agreement

LEAST_CORRELATION = 0.9  # below it the tokens have little to do with the model


class NotTheModel(RuntimeError):
    """Greedy tokens that have to be those of the model are others."""


def of_tokens(own: Served, reference: Served) -> Agreement:
    """Raises NotTheModel for the first token that differs."""
    for index, (said, expected) in enumerate(zip(own.tokens, reference.tokens, strict=True)):
        if said != expected:
            at = next((i for i, (a, b) in enumerate(zip(said, expected, strict=False)) if a != b), len(said))
            raise NotTheModel(
                f"request {index} differs from Transformers at new token {at} of {len(expected)}: its times are those "
                "of other work"
            )
    return Agreement(n_steps=sum(map(len, own.tokens)), tokens_equal=1.0)


def of_logits(engine: VLLM, loaded: Loaded, requests: Sequence[Request]) -> Agreement:
    """The engine's log-probabilities at every step beside the model's for the same history, which the engine wrote."""
    tokens, said = engine.said(requests)
    pairs = [
        (torch.from_numpy(own), _model_says(loaded, one, new))
        for one, new, own in zip(requests, tokens, said, strict=True)
    ]
    own_NV, model_NV = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
    return Agreement(
        n_steps=len(own_NV),
        tokens_equal=(own_NV.argmax(-1) == model_NV.argmax(-1)).double().mean().item(),
        correlation=float(np.corrcoef(own_NV.flatten(), model_NV.flatten())[0, 1]),
        kl=torch.nn.functional.kl_div(own_NV, model_NV, log_target=True, reduction="batchmean").item(),
    )


def is_the_model(agreement: Agreement) -> bool:
    return agreement.correlation is None or agreement.correlation >= LEAST_CORRELATION


@torch.inference_mode()
def _model_says(loaded: Loaded, request: Request, new: Sequence[int]) -> Tensor:
    """[N, V] log-probabilities that each of the new tokens is chosen by; all of history is fed at once."""
    ids = torch.tensor([[*request.prompt, *new[:-1]]], device=loaded.model.device)
    logits = loaded.model(ids, use_cache=False, logits_to_keep=len(new)).logits[0]
    return logits.double().log_softmax(-1).cpu()
