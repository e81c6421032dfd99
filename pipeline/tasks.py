"""Recall tasks: facts `K V` (two adjacent tokens) hidden in real text, and questions `Q K` whose answer is V.

The ids above the text are `N_KEYS` keys, `N_VALUES` values and two markers; they never occur in the text. A question
never contains an answer, so that it may be part of the prompt and be asked again after an eviction.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.corpus import N_TEXT_IDS

N_KEYS = N_VALUES = 128
FIRST_KEY = N_TEXT_IDS
FIRST_VALUE = FIRST_KEY + N_KEYS
ASK = FIRST_VALUE + N_VALUES  # Q
WORD = ASK + 1  # the one key of the most-frequent task
VOCAB_SIZE = WORD + 1
IGNORED = -100
N_ASSIGNMENTS = 4  # of each variable
WORD_COUNTS = (6, 3, 3, 3)  # the most frequent value, then its rivals


@dataclass(frozen=True)
class Facts:
    """What to hide and what to ask; facts are listed in the order in which they stand in the context."""

    keys: Tensor  # [N, F]
    values: Tensor  # [N, F]
    asked: Tensor  # [N, A] keys
    answers: Tensor  # [N, A] their values
    needles: Tensor  # [N, F] share of each fact in the item's depth; rows sum to 1


@dataclass(frozen=True)
class Task:
    """`make(keys [N, 128], values [N, 128], order [N, F], n_asked)`: shuffled ids and a shuffle of the F places."""

    make: Callable[[Tensor, Tensor, Tensor, int], Facts]
    n_facts: int
    n_asked: int = 1


@dataclass(frozen=True)
class RecallItems:
    """N contexts with their questions; all token tensors are int64.

    After question[:, : i + 1] the model should predict answer[:, i]; IGNORED (-100) where nothing is asked. depth is
    the place of the needle in the context, from 0 (start) to 1 (end); with several needles their mean.
    """

    context: Tensor  # [N, seq_len - n_question]
    question: Tensor  # [N, n_question]
    answer: Tensor  # [N, n_question]
    depth: Tensor  # [N] float


def recall_items(task: str, seq_len: int, n_items: int, seed: int, text: Tensor) -> RecallItems:
    """Items of one task; item i depends on (task, seq_len, seed, text, i) only. `text` [n] fills the haystacks.

    Raises ValueError for an unknown task, a context too short for its facts, or a text shorter than the context.
    """
    if task not in TASKS:
        raise ValueError(f"task={task}: unknown; valid: {', '.join(TASKS)}")
    return generate(TASKS[task], seq_len, n_items, [seed, zlib.crc32(task.encode())], text)


def generate(task: Task, seq_len: int, n_items: int, seed: list[int], text: Tensor) -> RecallItems:
    """The generator behind evaluation and training."""
    n_context, n_facts = seq_len - 2 * task.n_asked, task.n_facts
    if n_facts > most_facts(seq_len, task.n_asked):
        valid = 2 * (n_facts + task.n_asked)
        raise ValueError(f"seq_len={seq_len}: too short for {n_facts} facts and their question; valid: >= {valid}")
    if len(text) < n_context:
        raise ValueError(f"text of {len(text)} tokens: shorter than one context; valid: >= {n_context} tokens")
    sizes = [1, n_context - n_facts, N_KEYS, N_VALUES, n_facts]
    offset, places, keys, values, order = _uniforms(seed, n_items, sum(sizes)).split(sizes, dim=1)
    facts = task.make(FIRST_KEY + keys.argsort(1), FIRST_VALUE + values.argsort(1), order.argsort(1), task.n_asked)
    starts = _starts(places, n_facts)
    context = _windows(text, offset, n_context)
    context.scatter_(1, starts, facts.keys).scatter_(1, starts + 1, facts.values)
    question = torch.stack([torch.full_like(facts.asked, ASK), facts.asked], dim=2).flatten(1)
    answer = torch.stack([torch.full_like(facts.answers, IGNORED), facts.answers], dim=2).flatten(1)
    depth = (facts.needles * starts / max(n_context - 2, 1)).sum(1)
    return RecallItems(context, question, answer, depth)


def most_facts(seq_len: int, n_asked: int) -> int:
    """How many facts fit into a context beside their questions."""
    return seq_len // 2 - n_asked


def _uniforms(seed: list[int], n_items: int, n: int) -> Tensor:
    """[n_items, n] in [0, 1); every row has its own generator, so that rows do not depend on their number."""
    return torch.from_numpy(np.stack([np.random.default_rng([*seed, row]).random(n) for row in range(n_items)]))


def _windows(text: Tensor, offset: Tensor, n: int) -> Tensor:
    """[N, n] windows of the text that start at a share `offset` [N, 1] of what is possible."""
    starts = (offset * (len(text) - n + 1)).long()
    return text[starts + torch.arange(n)]


def _starts(places: Tensor, n_facts: int) -> Tensor:
    """[N, F] ascending starts of pairs that do not overlap, uniform over all such choices.

    Pairs are collapsed to one place each, distinct places are drawn, and the pairs are opened again.
    """
    chosen = places.argsort(dim=1)[:, :n_facts].sort(dim=1).values
    return chosen + torch.arange(n_facts)


def _look_up(keys: Tensor, values: Tensor, order: Tensor, n_asked: int) -> Facts:
    """F facts with different keys and different values; the first `n_asked` places of the shuffle are asked."""
    slots = order[:, :n_asked]
    keys, values = keys[:, : order.shape[1]], values[:, : order.shape[1]]
    return Facts(keys, values, keys.gather(1, slots), values.gather(1, slots), _shares(slots, order.shape[1]))


def _assignments(keys: Tensor, values: Tensor, order: Tensor, n_asked: int) -> Facts:
    """Variables K that are assigned `N_ASSIGNMENTS` different values in turn; the last one is the answer."""
    n_facts = order.shape[1]
    owner = order % (n_facts // N_ASSIGNMENTS)
    places = torch.arange(n_facts).expand_as(order)
    last = torch.where(owner == 0, places, -1).amax(dim=1, keepdim=True)
    assigned = values[:, :n_facts]
    return Facts(keys.gather(1, owner), assigned, keys[:, :1], assigned.gather(1, last), _shares(last, n_facts))


def _frequent(keys: Tensor, values: Tensor, order: Tensor, n_asked: int) -> Facts:
    """Facts `WORD V` with few different V; WORD is asked, and the V that occurs most often is the answer."""
    counts = torch.tensor(WORD_COUNTS)
    placed = torch.empty_like(order).scatter_(1, order, values[:, : len(counts)].repeat_interleave(counts, dim=1))
    word = torch.full_like(order, WORD)
    return Facts(word, placed, word[:, :1], values[:, :1], _shares(order[:, : WORD_COUNTS[0]], order.shape[1]))


def _shares(slots: Tensor, n_facts: int) -> Tensor:
    """[N, F] weights that spread 1 over the `slots` [N, A]."""
    shares = torch.zeros(len(slots), n_facts, dtype=torch.float64)
    return shares.scatter_(1, slots, 1 / slots.shape[1])


TASKS = {
    "single_needle": Task(_look_up, n_facts=1),
    "multi_key_8": Task(_look_up, n_facts=8),
    "multi_key_32": Task(_look_up, n_facts=32),
    "multi_query": Task(_look_up, n_facts=32, n_asked=8),
    "variable_tracking": Task(_assignments, n_facts=2 * N_ASSIGNMENTS),
    "most_frequent": Task(_frequent, n_facts=sum(WORD_COUNTS)),
}
