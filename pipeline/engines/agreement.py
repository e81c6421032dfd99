"""What an engine says beside what the model says, as Transformers computes it with plain keys and values.

Shapes: N tokens that were said, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.serving import Loaded, Request
from pipeline.engines.vllm import VLLM
from pipeline.record import Agreement

LEAST_CORRELATION = 0.9  # below it the tokens have little to do with the model
# Two words are equally likely where rounding decides: logits closer than so many times the last digit of the largest,
# which the order of sums moves. Of the widest types, whose last digit is large, not more than a share of it.
TIE, MOST = 256, 0.05

Answers = Sequence[Sequence[int]]  # tokens of each request


class NotTheModel(RuntimeError):
    """Greedy tokens that have to be those of the model are others."""


def of_tokens(own: Answers, reference: Answers, requests: Sequence[Request], loaded: Loaded) -> Agreement:
    """Raises NotTheModel for a token that differs; but where the model itself finds both equally likely, nothing is
    compared from there on, since the histories part.
    """
    n_steps = 0
    for index, (said, expected) in enumerate(zip(own, reference, strict=True)):
        pairs = list(zip(said, expected, strict=False))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        n_steps += at
        if said != expected and not (at < len(pairs) and _is_tie(loaded, requests[index], expected[:at], pairs[at])):
            raise NotTheModel(
                f"request {index} differs from Transformers at new token {at} of {len(expected)}: its times are those "
                "of other work"
            )
    return Agreement(n_steps=n_steps, tokens_equal=1.0)


def _is_tie(loaded: Loaded, request: Request, history: Sequence[int], words: tuple[int, int]) -> bool:
    logits = _logits(loaded, request.prompt + list(history), 1)[-1]
    last_digit = torch.finfo(loaded.model.dtype).eps
    apart = (logits[words[0]] - logits[words[1]]).abs() / logits.abs().max()
    return bool(apart <= min(TIE * last_digit, MOST))


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


def _model_says(loaded: Loaded, request: Request, new: Sequence[int]) -> Tensor:
    """[N, V] log-probabilities that each of the new tokens is chosen by."""
    return _logits(loaded, [*request.prompt, *new[:-1]], len(new)).log_softmax(-1)


@torch.inference_mode()
def _logits(loaded: Loaded, tokens: list[int], n_last: int) -> Tensor:
    """[n_last, V] in double; all of history is fed at once."""
    ids = torch.tensor([tokens], device=loaded.model.device)
    return loaded.model(ids, use_cache=False, logits_to_keep=n_last).logits[0].double().cpu()
