"""The recall tasks in words, for models that were not trained on the ids of `pipeline.tasks`.

The same items, spelled out: each fact and each question becomes a sentence of the language of the model's tokenizer,
in which keys and values are words of one token, so that all items are equally long and an answer is one token. A
question breaks off before its answer, and may therefore be part of the prompt and be asked again after an eviction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, takewhile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline import tasks
from pipeline.tasks import FIRST_KEY, FIRST_VALUE, IGNORED, N_KEYS, N_VALUES, RecallItems
from pipeline.text import tokenizer_at

KEY, VALUE = -1, -2  # where a word goes, among the token ids of a sentence
ANCHOR = "a"  # a sentence is encoded behind a word, as it stands in the text
# Longer words are rarely function words; a word must be one token behind a space, as GPT-2 (Ġ) or Llama (▁) mark it.
CANDIDATE = re.compile(r"[Ġ▁]([a-z]{5,9})")


@dataclass(frozen=True)
class Wording:
    fact: str
    question: str


_LOOK_UP = Wording(" The code {key} means {value}.", " ... The code {key} means")
WORDINGS = {
    "single_needle": _LOOK_UP,
    "multi_key_8": _LOOK_UP,
    "multi_key_32": _LOOK_UP,
    "multi_query": _LOOK_UP,
    "variable_tracking": Wording(" The code {key} now means {value}.", " ... The code {key} now means"),
    "most_frequent": Wording(" One vote for {value}.", " ... Most votes are for"),
}
SENTENCES = sorted({sentence for wording in WORDINGS.values() for sentence in (wording.fact, wording.question)})


@dataclass(frozen=True)
class Language:
    """How one tokenizer says the tasks."""

    prefix: list[int]  # what the tokenizer puts in front of every text, such as a BOS token
    sentences: dict[str, list[int]]  # token ids, with KEY and VALUE where the words go
    words: dict[int, int]  # keys and values of `pipeline.tasks` → token ids

    def items(self, task: str, seq_len: int, n_items: int, seed: int, text: Tensor) -> RecallItems:
        """`tasks.recall_items` in words: context and question together have `seq_len` tokens, the prefix included.

        The depth is that of the item before it is spelled out, where every fact has two tokens. Raises ValueError for
        a length that does not hold the task's sentences.
        """
        fact, question = self.sentences[WORDINGS[task].fact], self.sentences[WORDINGS[task].question]
        n_facts, n_asked = tasks.TASKS[task].n_facts, tasks.TASKS[task].n_asked
        n_sentences = len(self.prefix) + n_facts * len(fact) + n_asked * len(question)
        if seq_len < n_sentences:
            raise ValueError(
                f"workload.seq_len={seq_len}: too short for {task} in words; valid: at least {n_sentences}, "
                "or other workload.tasks"
            )
        # Placeholders are negative, so that they cannot be taken for a key or a value.
        compact_len = seq_len - n_sentences + 2 * (n_facts + n_asked)
        compact = tasks.recall_items(task, compact_len, n_items, seed, ~torch.arange(len(text)))
        known = text.tolist()
        contexts = [[*self.prefix, *self._spelled(row, fact, known)] for row in compact.context.tolist()]
        asked = [self._asked(row, question) for row in compact.question.tolist()]
        answers = torch.full((n_items, n_asked, len(question)), IGNORED)
        answers[:, :, -1] = compact.answer[:, 1::2].apply_(self.words.__getitem__)
        return RecallItems(torch.tensor(contexts), torch.tensor(asked), answers.flatten(1), compact.depth)

    def _spelled(self, row: list[int], fact: list[int], text: list[int]) -> Iterator[int]:
        """Placeholders become the text's tokens, and each pair of a key and a value a sentence."""
        ids = iter(row)
        for token in ids:
            if token < 0:
                yield text[~token]
            else:
                yield from self._said(fact, token, next(ids))

    def _asked(self, row: list[int], question: list[int]) -> list[int]:
        return [token for key in row[1::2] for token in self._said(question, key)]

    def _said(self, sentence: list[int], key: int, value: int | None = None) -> Iterator[int]:
        chosen = {KEY: key, VALUE: value}
        for token in sentence:
            yield self.words[chosen[token]] if token in chosen else token  # type: ignore[index]  # questions hold no VALUE


@cache
def language(tokenizer_path: Path) -> Language:
    """Raises ValueError, one line, for what is no tokenizer, and for one that has too few words of one token."""
    tokenizer = tokenizer_at(tokenizer_path)
    sentences = {sentence: _pattern(tokenizer, sentence) for sentence in SENTENCES}
    found = list(islice(_single_words(tokenizer, sentences), N_KEYS + N_VALUES))
    if len(found) < N_KEYS + N_VALUES:
        raise ValueError(
            f"model.path={tokenizer_path.parent}: its tokenizer has {len(found)} words of one token, the recall tasks "
            f"need {N_KEYS + N_VALUES}; valid: workload.tasks=[], or workload=cost"
        )
    ids = [*range(FIRST_KEY, FIRST_KEY + N_KEYS), *range(FIRST_VALUE, FIRST_VALUE + N_VALUES)]
    alternating = found[0::2] + found[1::2]  # so that keys are no more frequent words than values
    return Language(_prefix(tokenizer), sentences, dict(zip(ids, alternating, strict=True)))


def _prefix(tokenizer: Tokenizer) -> list[int]:
    encoded = tokenizer.encode(ANCHOR)
    special = zip(encoded.ids, encoded.special_tokens_mask, strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], special)]


def _pattern(tokenizer: Tokenizer, sentence: str) -> list[int]:
    pieces = re.split(r" \{(key|value)\}", sentence)
    slots = {"key": [KEY], "value": [VALUE]}
    return [token for piece in pieces for token in slots.get(piece) or _behind_a_word(tokenizer, piece)]


def _behind_a_word(tokenizer: Tokenizer, piece: str) -> list[int]:
    """Token ids of a piece as it stands within a text: tokenizers may treat the start of a text in another way."""
    n_anchor = len(tokenizer.encode(ANCHOR, add_special_tokens=False).ids)
    return tokenizer.encode(ANCHOR + piece, add_special_tokens=False).ids[n_anchor:]


def _single_words(tokenizer: Tokenizer, sentences: dict[str, list[int]]) -> Iterator[int]:
    """The lowest ids first, which byte-level tokenizers give to the most frequent words."""
    taken = set(re.findall(r"[a-z]+", " ".join(SENTENCES).lower()))
    for marked, token in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        match = CANDIDATE.fullmatch(marked)
        if match and match[1] not in taken and _fits(tokenizer, match[1], token, sentences):
            yield token


def _fits(tokenizer: Tokenizer, word: str, token: int, sentences: dict[str, list[int]]) -> bool:
    """Every sentence with this word is encoded to exactly what is put together here."""
    return all(
        _behind_a_word(tokenizer, sentence.format(key=word, value=word))
        == [token if part in (KEY, VALUE) else part for part in pattern]
        for sentence, pattern in sentences.items()
    )
