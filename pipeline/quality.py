"""Quality on the evolving cache: prefill, evict, continue; never one forward pass.

Everything is paired with the full cache, item by item, and deterministic: the same seed gives the same numbers.
Shapes: B items in a batch, N all items, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from pipeline.decoding import Decoder
from pipeline.finite import require_finite
from pipeline.intervals import bootstrap
from pipeline.record import Items, TaskQuality, TextQuality
from pipeline.tasks import IGNORED, RecallItems

NewDecoder = Callable[[int], Decoder]  # given the number of tokens that will follow the prompt
Protocol = Literal["query_aware", "query_agnostic"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
BATCH = 32


@dataclass(frozen=True)
class Continuation:
    """What one arm said after the tokens that are scored, row by row [n, V], and what it held after the last one."""

    logits: Tensor
    kv_bytes_held: int  # whole batch
    kv_bytes_offloaded: int


# What was said to these tensors before, or what is computed now.
Memory = Callable[[tuple[Tensor, ...], Callable[[], Continuation]], Continuation]


@dataclass(frozen=True)
class Arms:
    """The two that are compared on the same tokens; where they are one and the same, it is asked once.

    `memory`: of what the full cache said. Without it, it is asked anew.
    """

    technique: NewDecoder
    full: NewDecoder
    memory: Memory | None = None


@dataclass(frozen=True)
class Scores:
    """Tensors [N] float64: the mean over what was asked in one item (or over the tokens of one text stream)."""

    kv_bytes_held: int  # of one item after its last token, mean over items
    kv_bytes_held_full: int
    kv_bytes_offloaded: int
    correct: Tensor
    correct_full: Tensor
    nll: Tensor  # nats
    nll_full: Tensor
    kl: Tensor  # nats, KL(full || technique)
    agree: Tensor


@dataclass(frozen=True)
class Resampling:
    """Paired bootstrap: n_bootstrap resamples over the units."""

    n_bootstrap: int
    seed: int


def recall(arms: Arms, task: str, items: RecallItems, protocol: Protocol, resampling: Resampling) -> TaskQuality:
    """One task under one protocol; the intervals are over items.

    query_aware: the question ends the prompt, so an eviction may look at it; then it is asked again and that answer is
    scored (the first one would come from prefill's own logits and prove nothing). query_agnostic: asked only after
    the eviction.
    """
    prompt = torch.cat([items.context, items.question], dim=1) if protocol == "query_aware" else items.context
    scores = _scores(arms, prompt, items.question, items.answer)
    difference = scores.correct - scores.correct_full
    return TaskQuality(
        task=task,
        protocol=protocol,
        n_items=len(prompt),
        accuracy=scores.correct.mean().item(),
        accuracy_full=scores.correct_full.mean().item(),
        accuracy_difference=bootstrap(difference.tolist(), resampling.n_bootstrap, resampling.seed),
        **_shared(scores, items.depth.tolist(), resampling),
    )


def streaming_text(arms: Arms, streams: Tensor, n_scored: int, resampling: Resampling) -> TextQuality:
    """Loss of the last `n_scored` tokens of each stream [N, T + 1], fed one by one after a prompt of T - n_scored.

    The interval is over streams: tokens of one stream are not independent.
    """
    prompt, following = streams.tensor_split([streams.shape[1] - 1 - n_scored], dim=1)
    scores = _scores(arms, prompt, following[:, :-1], following[:, 1:])
    return TextQuality(
        n_context=prompt.shape[1],
        n_tokens=len(streams) * n_scored,
        **_shared(scores, [], resampling),
    )


def text_streams(text: Tensor, seq_len: int, n_streams: int, n_scored: int) -> Tensor:
    """`n_streams` windows of seq_len + 1 tokens [N, seq_len + 1], spread evenly over the text [n].

    Raises ValueError when the text is too short to give windows that do not overlap, or nothing would be evicted on.
    """
    if not 0 < n_scored < seq_len:
        raise ValueError(f"n_text_tokens={n_scored}: must leave a prompt in seq_len={seq_len}; valid: 1..{seq_len - 1}")
    stride = len(text) // n_streams
    if stride < seq_len + 1:
        raise ValueError(
            f"n_text_streams={n_streams}: {len(text)} held-out tokens hold fewer streams of {seq_len + 1}; "
            f"valid: 1..{len(text) // (seq_len + 1)}"
        )
    return text[: stride * n_streams].view(n_streams, stride)[:, : seq_len + 1]


def _shared(scores: Scores, depth: list[float], resampling: Resampling) -> dict[str, Any]:
    """What recall and text have in common in a record."""
    difference = (scores.nll - scores.nll_full).tolist()
    return {
        "items": Items(
            depth=_rounded(depth),
            correct=_rounded(scores.correct.tolist()),
            correct_full=_rounded(scores.correct_full.tolist()),
            nll=_rounded(scores.nll.tolist()),
            nll_full=_rounded(scores.nll_full.tolist()),
        ),
        "kv_bytes_held": scores.kv_bytes_held,
        "kv_bytes_held_full": scores.kv_bytes_held_full,
        "kv_bytes_offloaded": scores.kv_bytes_offloaded,
        "nll": scores.nll.mean().item(),
        "nll_full": scores.nll_full.mean().item(),
        "nll_difference": bootstrap(difference, resampling.n_bootstrap, resampling.seed),
        "kl_to_full": scores.kl.mean().item(),
        "top1_agreement": scores.agree.mean().item(),
    }


def _rounded(values: list[float]) -> list[float]:
    """Six digits are more than any item is worth, and keep records small."""
    return [float(f"{value:.6g}") for value in values]


def _scores(arms: Arms, prompt: Tensor, asked: Tensor, target: Tensor) -> Scores:
    """Batch by batch; `asked` [N, T] follows the prompt token by token, `target` [N, T] is IGNORED where unscored."""
    batches, n_bytes = [], torch.zeros(3, dtype=torch.long)
    for prompt_BT, asked_BT, target_BT in zip(*(t.split(BATCH) for t in (prompt, asked, target)), strict=True):
        technique, full = _both(arms, prompt_BT, asked_BT, target_BT != IGNORED)
        batches.append(_compare(technique.logits, full.logits.to(technique.logits.device), target_BT))
        n_bytes += torch.tensor([technique.kv_bytes_held, full.kv_bytes_held, technique.kv_bytes_offloaded])
    per_item = (torch.cat(parts) for parts in zip(*batches, strict=True))
    held, held_full, offloaded = (n_bytes // len(prompt)).tolist()
    return Scores(held, held_full, offloaded, *per_item)


def _both(arms: Arms, prompt_BT: Tensor, asked_BT: Tensor, scored_BT: Tensor) -> tuple[Continuation, Continuation]:
    """Of the technique and of the full cache."""
    ask_full = partial(_continue, arms.full, prompt_BT, asked_BT, scored_BT)
    full = ask_full() if arms.memory is None else arms.memory((prompt_BT, asked_BT, scored_BT), ask_full)
    if arms.technique is arms.full:
        return full, full
    return _continue(arms.technique, prompt_BT, asked_BT, scored_BT), full


def _continue(new_decoder: NewDecoder, prompt_BT: Tensor, asked_BT: Tensor, scored_BT: Tensor) -> Continuation:
    """Feed the prompt, then `asked_BT` token by token."""
    fresh = partial(new_decoder, asked_BT.shape[1])
    with fresh() as decoder:
        device = decoder.model.device
        prompt_BT, asked_BT, scored_BT = (tensor.to(device) for tensor in (prompt_BT, asked_BT, scored_BT))
        decoder.foresee(torch.cat([prompt_BT, asked_BT], dim=1), prompt_BT.shape[1])
        first_BV = decoder.feed(prompt_BT)
        logits_BTV = decoder.teacher_force(asked_BT)
    fed = [prompt_BT, *asked_BT.split(1, dim=1)]
    for logits in (first_BV, logits_BTV):
        require_finite(logits, fresh, fed)
    return Continuation(logits_BTV[scored_BT], decoder.kv_bytes_held, decoder.kv_bytes_offloaded)


def _compare(technique: Tensor, full: Tensor, target_BT: Tensor) -> tuple[Tensor, ...]:
    """The tensors of Scores, in their order, for one batch; logits [n, V] of what is scored, row by row."""
    target_BT = target_BT.to(technique.device)
    asked_BT = target_BT != IGNORED
    targets, logits, reference = target_BT[asked_BT], technique.double(), full.double()
    best, best_reference = logits.argmax(-1), reference.argmax(-1)
    per_answer = (
        best == targets,
        best_reference == targets,
        cross_entropy(logits, targets, reduction="none"),
        cross_entropy(reference, targets, reduction="none"),
        kl_div(logits.log_softmax(-1), reference.log_softmax(-1), reduction="none", log_target=True).sum(-1),
        best == best_reference,
    )
    return tuple(_mean_per_item(values, asked_BT) for values in per_answer)


def _mean_per_item(values: Tensor, asked_BT: Tensor) -> Tensor:
    """values: one for each True of `asked_BT`, row by row."""
    spread_BT = torch.zeros(asked_BT.shape, dtype=torch.float64, device=asked_BT.device)
    spread_BT[asked_BT] = values.double()
    return (spread_BT.sum(1) / asked_BT.sum(1)).cpu()
