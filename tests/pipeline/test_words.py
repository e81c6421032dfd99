"""The recall tasks in words: read as text, every item has exactly the facts, the question and the answer it should."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from pipeline import text, words
from pipeline.tasks import IGNORED, N_KEYS, N_VALUES, TASKS, RecallItems
from pipeline.text import Text
from pipeline.words import Language
from tests.pipeline import checkpoints

KINDS = {"byte_level": checkpoints.byte_level, "metaspace": checkpoints.metaspace}
SEQ_LEN = 300
FIELDS = ("context", "question", "answer", "depth")


@pytest.fixture(scope="module", params=KINDS)
def path(request, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    KINDS[request.param]().save(str(file))
    return file


@pytest.fixture
def tokenizer(path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


@pytest.fixture
def language(path) -> Language:
    return words.language(path)


@pytest.fixture
def haystack(path) -> Text:
    return text.tokenized(None, path)


@pytest.fixture
def items(language, haystack):
    def make(task: str, seq_len: int = SEQ_LEN, n_items: int = 5, seed: int = 0) -> RecallItems:
        return language.items(task, seq_len, n_items, seed, haystack.tokens)

    return make


def answer_of(task: str, context: str, question: str) -> str:
    """Reads the prompt as a person would: no ids, no knowledge of how the item was made."""
    if task == "most_frequent":
        ((winner, most), (_, second), *_) = Counter(re.findall(r"One vote for (\w+)\.", context)).most_common()
        assert question == "... Most votes are for" and most > second
        return winner
    key, means = re.fullmatch(r"\.\.\. The code (\w+) ((?:now )?means)", question).groups()
    return re.findall(rf"The code {key} {means} (\w+)\.", context)[-1]


@pytest.mark.parametrize("task", TASKS)
def test_every_item_can_be_answered_by_reading_it(items, tokenizer, task):
    asked = items(task)
    n_asked = TASKS[task].n_asked
    for context, question, answer in zip(asked.context, asked.question, asked.answer, strict=True):
        read = tokenizer.decode(context.tolist())
        parts = zip(question.chunk(n_asked), answer.chunk(n_asked), strict=True)
        for question_part, answer_part in parts:
            assert (answer_part[:-1] == IGNORED).all()
            found = answer_of(task, read, tokenizer.decode(question_part.tolist()).strip())
            assert tokenizer.decode([int(answer_part[-1])]).strip() == found


@pytest.mark.parametrize("task", TASKS)
def test_a_context_holds_the_tasks_facts_and_otherwise_real_text(items, language, haystack, tokenizer, task):
    fact = words.WORDINGS[task].fact.strip().replace(".", r"\.").format(key=r"\w+", value=r"\w+")
    n_text = items(task).context.shape[1] - len(language.prefix)
    n_text -= TASKS[task].n_facts * len(language.sentences[words.WORDINGS[task].fact])
    known = set(haystack.tokens.tolist())
    for context in items(task).context:
        assert len(re.findall(fact, tokenizer.decode(context.tolist()))) == TASKS[task].n_facts
        assert sum(token in known for token in context.tolist()) >= n_text


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seq_len", [256, 301])
def test_context_and_question_fill_the_length_and_begin_as_the_tokenizer_begins(items, language, task, seq_len):
    asked = items(task, seq_len)
    assert asked.context.shape[1] + asked.question.shape[1] == seq_len
    assert asked.question.shape == asked.answer.shape and asked.depth.shape == (5,)
    assert ((asked.depth >= 0) & (asked.depth <= 1)).all()
    assert all(row[: len(language.prefix)] == language.prefix for row in asked.context.tolist())
    assert not set(language.prefix) & set(asked.question.flatten().tolist())


def test_only_the_llama_like_tokenizer_begins_with_a_bos_token(language, path):
    assert language.prefix == ([1] if "metaspace" in str(path) else [])


@pytest.mark.parametrize("task", TASKS)
def test_items_are_deterministic_and_do_not_depend_on_their_number(items, task):
    many, few, other = items(task, n_items=7), items(task, n_items=3), items(task, n_items=3, seed=1)
    assert all(torch.equal(getattr(many, field)[:3], getattr(few, field)) for field in FIELDS)
    assert not torch.equal(few.context, other.context)


def test_the_needle_lies_at_its_depth(items, tokenizer):
    asked = items("single_needle", n_items=20)
    for context, depth in zip(asked.context.tolist(), asked.depth.tolist(), strict=True):
        before = tokenizer.decode(context).index(" The code ")
        n_before = len(tokenizer.encode(tokenizer.decode(context)[:before], add_special_tokens=False).ids)
        assert n_before / (SEQ_LEN - 12) == pytest.approx(depth, abs=0.05)
    assert asked.depth.max() - asked.depth.min() > 0.5


def test_words_are_different_single_tokens_and_no_words_of_the_sentences(language, tokenizer):
    spelled = [tokenizer.id_to_token(token) for token in language.words.values()]
    assert len(set(spelled)) == N_KEYS + N_VALUES
    assert all(words.CANDIDATE.fullmatch(word) for word in spelled)
    assert not {word[1:] for word in spelled} & set(re.findall(r"\w+", " ".join(words.SENTENCES).lower()))


@pytest.mark.parametrize("sentence", words.SENTENCES)
def test_a_sentence_is_what_the_tokenizer_makes_of_it_within_a_text(language, tokenizer, sentence):
    chosen = list(language.words.values())
    for key, value in pairwise(chosen):
        named = {name: tokenizer.id_to_token(token)[1:] for name, token in (("key", key), ("value", value))}
        encoded = tokenizer.encode(f"real text{sentence.format(**named)}", add_special_tokens=False).ids
        expected = [{words.KEY: key, words.VALUE: value}.get(t, t) for t in language.sentences[sentence]]
        assert encoded[-len(expected) :] == expected


def test_a_length_that_holds_exactly_the_sentences_is_the_shortest(items, language):
    n_least = len(language.prefix) + 32 * 6 + 8 * 5
    assert items("multi_query", n_least).context.shape[1] == n_least - 40
    with pytest.raises(ValueError, match=rf"seq_len={n_least - 1}: too short for multi_query .*at least {n_least}, "):
        items("multi_query", n_least - 1)


def test_a_tokenizer_without_enough_words_is_refused(tmp_path):
    few = Tokenizer(tokenizer_models.WordLevel({"a": 0, "Ġapple": 1}, unk_token="a"))
    few.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"model.path=.*has \d words of one token, .* need 256; valid: ") as refusal:
        words.language(tmp_path / "tokenizer.json")
    assert "\n" not in str(refusal.value)
