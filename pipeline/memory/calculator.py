"""Bytes of a cache and the largest batch, for any configuration and any technique, without weights or numbers.

The caches themselves are asked, on the meta device, where they are as large as anywhere and take no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from transformers import PreTrainedModel

from pipeline import calibration, models
from pipeline.config import Model
from pipeline.decoding import Decoder
from pipeline.memory.costs import kv_bytes_per_token, weight_bytes
from pipeline.memory.question import Question

BuildCache = Callable[..., Any]


@dataclass(frozen=True)
class Bytes:
    """Of one cache, whole batch and all layers, when the prompt is in."""

    kept: int  # of the tokens that are kept, with the scales of their codes
    held: int  # on device and host: with positions, scores, and room for the tokens that may follow

    def times(self, n: int) -> Bytes:
        return Bytes(n * self.kept, n * self.held)


@dataclass(frozen=True)
class Answer:
    """At one length, of a batch of one and of two: each further sequence adds the same, and some bytes are shared."""

    seq_len: int
    kv_budget: int | None  # tokens per KV head, mean over layers; None keeps all
    one: Bytes
    two: Bytes

    def of_batch(self, batch: int) -> Bytes:
        def grown(one: int, two: int) -> int:
            return one + (two - one) * (batch - 1)

        one, two = self.one, self.two
        return Bytes(grown(one.kept, two.kept), grown(one.held, two.held))

    def largest_batch(self, room: int) -> int | None:
        """The most sequences whose caches fit into `room` bytes; 0 where none does, None where they take nothing."""
        each = self.two.held - self.one.held
        if self.two.held == 0:
            return None if room >= 0 else 0
        return 0 if room < self.one.held else 1 + (room - self.one.held) // each

    def of_layers(self, n_layers: int) -> Answer:
        """Of so many layers, if this is of one and all are alike."""
        return Answer(self.seq_len, self.kv_budget, self.one.times(n_layers), self.two.times(n_layers))


@dataclass(frozen=True)
class Calculated:
    weight_bytes: int
    kv_bytes_per_token: int  # that one more token adds where nothing is compressed
    answers: list[Answer]


def calculate(question: Question) -> Calculated:
    """Raises ValueError for a model that cannot be configured, and what a technique raises for one it cannot hold."""
    with models.quiet():
        model = models.outlined(question.configured(), question.dtype)
        answers = [_answer(question, model, seq_len) for seq_len in question.seq_len]
    return Calculated(weight_bytes(model), kv_bytes_per_token(model.config, model.dtype), answers)


def _answer(question: Question, model: PreTrainedModel, seq_len: int) -> Answer:
    budget = question.budget_at(seq_len)
    build = instantiate(question.strategy.cache)
    one, two = (
        bytes_of(build, model, question.model, budget, seq_len, batch, question.n_new_tokens) for batch in (1, 2)
    )
    return Answer(seq_len, budget, one, two)


def bytes_of(
    build: BuildCache, model: PreTrainedModel, spec: Model, kv_budget: int | None, seq_len: int, batch: int,
    n_new_tokens: int,
) -> Bytes:  # fmt: skip
    """By a prompt on shapes alone: `model` has no weights. What cannot be held is refused by the technique itself."""
    calibration.ensure(build, model, spec.model_copy(update={"source": "random"}))  # no text changes a shape
    ids_BT = torch.zeros(batch, seq_len + 1, dtype=torch.long, device="meta")
    with Decoder(model, build(model=model, kv_budget=kv_budget, headroom=n_new_tokens)) as decoder:
        if decoder.cache is not None:
            decoder.foresee(ids_BT, seq_len)
            decoder.feed(ids_BT[:, :seq_len])
        return Bytes(decoder.kv_bytes_logical, decoder.kv_bytes_held)
