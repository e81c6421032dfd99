"""What one technique answers to recall items after its eviction, item by item, so that any two can be paired.

Shapes: N items, A answers of an item, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from pipeline.decoding import Decoder
from pipeline.quality import NewDecoder, Protocol
from pipeline.tasks import IGNORED, RecallItems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 32


def arm(model: PreTrainedModel, technique: str, *overrides: str, kv_budget: int | None = None) -> NewDecoder:
    """A technique of conf/strategy by its name; `overrides` change its parts as on the command line.

    Raises Hydra's own errors for a technique or an override that cannot be.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from pipeline.refusals import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"strategy={technique}", "profile=cpu", *overrides])
    build: Callable[..., Any] = instantiate(cfg.strategy.cache)
    return lambda headroom: Decoder(model, build(model=model, kv_budget=kv_budget, headroom=headroom))


def prompt(items: RecallItems, protocol: Protocol) -> Tensor:
    """[N, T]: with the question at its end, so that an eviction may look at it, or without."""
    return torch.cat([items.context, items.question], dim=1) if protocol == "query_aware" else items.context


def fed(decoder: Decoder, prompt_BT: Tensor, question_BT: Tensor) -> None:
    """The prompt and the eviction after it; a scorer that asks for the future is shown it."""
    if decoder.cache is not None:
        decoder.cache.foresee(decoder.model, torch.cat([prompt_BT, question_BT], dim=1), prompt_BT.shape[1])
    decoder.feed(prompt_BT)


def replies(new_decoder: NewDecoder, items: RecallItems, protocol: Protocol) -> Tensor:
    """Logits [N, A, V] where an answer is asked for, one by one after the eviction."""
    found = []
    for prompt_BT, question_BT in zip(prompt(items, protocol).split(BATCH), items.question.split(BATCH), strict=True):
        with new_decoder(question_BT.shape[1]) as decoder:
            fed(decoder, prompt_BT, question_BT)
            found.append(decoder.teacher_force(question_BT))
    return asked(torch.cat(found), items)


def asked(logits: Tensor, items: RecallItems) -> Tensor:
    """[N, T, V] after every token of the question → [N, A, V] where an answer is asked for."""
    return logits[items.answer != IGNORED].unflatten(0, (len(logits), -1))


def correct(logits: Tensor, items: RecallItems) -> Tensor:
    """[N] share of an item's answers that are given first."""
    answers = items.answer[items.answer != IGNORED].unflatten(0, (len(logits), -1))
    return (logits.argmax(-1) == answers).double().mean(1)


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """[N] mean KL(reference || logits) in nats over an item's answers."""
    pair = (logits.double().log_softmax(-1), reference.double().log_softmax(-1))
    return kl_div(*pair, reduction="none", log_target=True).sum(-1).mean(1)
