"""What the quality of a cell is measured on: recall items and streams of text, in the tokens of its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import models, quality, tasks, text, words
from pipeline.config import Model, Workload
from pipeline.folders import TOKENIZER
from pipeline.record import Cell
from pipeline.tasks import RecallItems
from pipeline.text import Text


@dataclass(frozen=True)
class Prompts:
    text: Text
    items: dict[str, RecallItems]  # by task
    streams: Tensor | None  # [N, seq_len + 1]
    n_scored: int  # last tokens of each stream

    @property
    def highest_id(self) -> int:
        """Of all tokens that the model is going to see."""
        parts = [tensor for items in self.items.values() for tensor in (items.context, items.question, items.answer)]
        return max(int(part.max()) for part in [*parts, self.text.tokens])

    @property
    def longest_question(self) -> int:
        """Tokens that follow a prompt when it is asked again."""
        return max((items.question.shape[1] for items in self.items.values()), default=0)


def prompts(model: Model, workload: Workload, cell: Cell, n_items: int) -> Prompts:
    """The model that the pipeline trained is asked in ids of its own, any other one in words.

    Raises ValueError, one line, for a model without a tokenizer or with one that has too few words, for a text that
    cannot be read or is too short, and for a length that does not hold a task.
    """
    tokenizer_path = _tokenizer_path(model)
    found = text.tokenized(workload.text, tokenizer_path)
    _check_length(found, workload, cell.seq_len)
    n_scored = min(workload.n_text_tokens, cell.seq_len // 2)  # the other half is there to be evicted from
    if model.source == "checkpoint":
        recall_items, prefix = tasks.recall_items, []
    else:
        language = words.language(tokenizer_path)
        recall_items, prefix = language.items, language.prefix
    return Prompts(
        text=found,
        items={task: recall_items(task, cell.seq_len, n_items, cell.seed, found.tokens) for task in workload.tasks},
        streams=_streams(found.tokens, prefix, cell.seq_len, workload.n_text_streams, n_scored),
        n_scored=n_scored,
    )


def _streams(tokens: Tensor, prefix: list[int], seq_len: int, n_streams: int, n_scored: int) -> Tensor | None:
    if not n_streams:
        return None
    windows = quality.text_streams(tokens, seq_len - len(prefix), n_streams, n_scored)
    return torch.cat([torch.tensor(prefix, dtype=torch.long).expand(n_streams, -1), windows], dim=1)


def _tokenizer_path(model: Model) -> Path:
    place = models.folder(model.source, model.path, model.revision)
    assert place is not None, "random weights are refused where quality is to be measured"
    return place / TOKENIZER


def _check_length(found: Text, workload: Workload, seq_len: int) -> None:
    n_needed = max(workload.n_text_streams, 1) * (seq_len + 1)
    if len(found.tokens) < n_needed:
        given = "null" if workload.text is None else workload.text
        raise ValueError(
            f"workload.text={given}: its {len(found.tokens):,} tokens are too few for {workload.n_text_streams} "
            f"streams of {seq_len + 1}; valid: at least {n_needed:,}, or fewer workload.n_text_streams"
        )
