"""Training batches, drawn on the fly: real text, repeated random strings, and the recall tasks themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline import tasks
from pipeline.corpus import N_TEXT_IDS
from pipeline.recipe import Phase
from pipeline.tasks import IGNORED, RecallItems

GROUPS = ("text", "recallable", "answer")


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # [B, T]
    targets: Tensor  # [B, T]; IGNORED where nothing is to be predicted
    groups: Tensor  # [B, T] index into GROUPS
    positions: Tensor  # [B, T]


def draw(phase: Phase, max_gap: int, text: Tensor, rng: np.random.Generator) -> Batch:
    """One batch of a phase: every row is of one kind of its mixture."""
    counts = rng.multinomial(phase.batch, list(phase.mixture.values()))
    kinds = zip(phase.mixture, counts, strict=True)
    parts = [_rows(kind, int(count), phase, text, rng) for kind, count in kinds if count]
    tokens, targets, groups = (torch.cat(column) for column in zip(*parts, strict=True))
    positions = torch.arange(phase.seq_len).repeat(len(tokens), 1)
    if rng.random() < phase.gaps:
        positions = positions + _gaps(positions.shape, max_gap, rng)
    return Batch(tokens, targets, groups, positions)


def _rows(kind: str, n: int, phase: Phase, text: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    if kind == "text":
        return _text_rows(n, phase.seq_len, text, rng)
    if kind == "repeats":
        return _repeat_rows(n, phase.seq_len, rng)
    return _task_rows(kind, n, phase, text, rng)


def _text_rows(n: int, seq_len: int, text: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    starts = torch.from_numpy(rng.integers(0, len(text) - seq_len, size=(n, 1)))
    window = text[starts + torch.arange(seq_len + 1)]
    return window[:, :-1], window[:, 1:], torch.zeros(n, seq_len, dtype=torch.long)


def _repeat_rows(n: int, seq_len: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random strings over all ids with a period per row: one common period would be learned by position alone."""
    periods = torch.from_numpy(rng.integers(seq_len // 8, seq_len // 2 + 1, size=(n, 1)))
    strings = torch.from_numpy(rng.integers(0, tasks.ASK, size=(n, seq_len)))
    places = torch.arange(seq_len + 1)
    tokens = strings.gather(1, places % periods)
    targets = tokens[:, 1:].masked_fill(places[1:] < periods, IGNORED)
    return tokens[:, :-1], targets, torch.full((n, seq_len), GROUPS.index("recallable"))


def _task_rows(
    kind: str, n: int, phase: Phase, text: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Items with their question behind them, once or twice: after an eviction the same question is asked again."""
    task, n_times = tasks.TASKS[kind], 1 + int(rng.random() < phase.asked_twice)
    seq_len = phase.seq_len - 2 * task.n_asked * (n_times - 1)
    if kind == "multi_query":
        most = min(task.n_facts, tasks.most_facts(seq_len, task.n_asked))
        task = replace(task, n_facts=int(rng.integers(task.n_asked, most + 1)))
    return _labelled(tasks.generate(task, seq_len, n, [int(rng.integers(2**62))], text), n_times)


def _labelled(items: RecallItems, n_times: int) -> tuple[Tensor, Tensor, Tensor]:
    question, answer = items.question.repeat(1, n_times), items.answer.repeat(1, n_times)
    following = items.context[:, 1:]  # facts cannot be foreseen, and what follows the last context token is a question
    known = torch.where(following < N_TEXT_IDS, following, IGNORED)
    targets = torch.cat([known, torch.full_like(known[:, :1], IGNORED), answer], dim=1)
    groups = torch.zeros_like(targets)
    groups[:, items.context.shape[1] :] = GROUPS.index("answer")
    return torch.cat([items.context, question], dim=1), targets, groups


def _gaps(shape: torch.Size, max_gap: int, rng: np.random.Generator, n_gaps: int = 4) -> Tensor:
    """[B, T] offsets that grow at a few random places of every row, by `max_gap` tokens at most."""
    where = torch.from_numpy(rng.integers(0, shape[1], size=(shape[0], n_gaps)))
    by = torch.from_numpy(rng.integers(0, max_gap // n_gaps + 1, size=(shape[0], n_gaps)))
    return torch.zeros(shape, dtype=torch.long).scatter_add_(1, where, by).cumsum(1)
