import pytest
import torch

from pipeline import tasks
from pipeline.tasks import ASK, FIRST_KEY, FIRST_VALUE, IGNORED, TASKS, VOCAB_SIZE, WORD, recall_items

TEXT = torch.randint(0, 1024, (5000,), generator=torch.Generator().manual_seed(0))
NAMES = list(TASKS)


def facts_of(context: torch.Tensor) -> list[tuple[int, int, int]]:
    """(start, K, V) of every fact, read from the context alone."""
    ids = context.tolist()
    facts, place = [], 0
    while place < len(ids) - 1:
        if ids[place] >= FIRST_KEY:
            facts.append((place, ids[place], ids[place + 1]))
            place += 1
        place += 1
    return facts


@pytest.mark.parametrize("name", NAMES)
def test_items_are_deterministic_and_do_not_depend_on_their_number(name):
    many, few = (recall_items(name, 256, n, seed=3, text=TEXT) for n in (20, 7))
    for field in ("context", "question", "answer", "depth"):
        assert torch.equal(getattr(many, field)[:7], getattr(few, field))


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_other_items(name):
    first, second = (recall_items(name, 256, 8, seed=seed, text=TEXT) for seed in (0, 1))
    assert not torch.equal(first.context, second.context)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seq_len", [96, 257, 1024])
def test_context_and_question_fill_the_length_with_known_ids(name, seq_len):
    items = recall_items(name, seq_len, 5, seed=0, text=TEXT)
    assert items.context.shape[1] + items.question.shape[1] == seq_len
    assert items.answer.shape == items.question.shape and items.depth.shape == (5,)
    assert items.context.dtype == items.question.dtype == items.answer.dtype == torch.int64
    assert int(items.context.min()) >= 0 and int(items.context.max()) < VOCAB_SIZE


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_stands_in_a_question(name):
    items = recall_items(name, 256, 50, seed=0, text=TEXT)
    asked = items.answer != IGNORED
    assert torch.equal(asked[0], torch.tensor([False, True] * (items.question.shape[1] // 2)))
    assert (items.question[:, ::2] == ASK).all() and (items.question < FIRST_VALUE).logical_or(
        items.question >= ASK
    ).all()
    assert ((items.answer[asked] >= FIRST_VALUE) & (items.answer[asked] < ASK)).all()


@pytest.mark.parametrize(("name", "n_facts"), [("single_needle", 1), ("multi_key_8", 8), ("multi_key_32", 32)])
def test_the_answer_stands_behind_its_key_at_the_stated_depth(name, n_facts):
    items = recall_items(name, 256, 50, seed=0, text=TEXT)
    for context, question, answer, depth in zip(items.context, items.question, items.answer, items.depth, strict=True):
        facts = facts_of(context)
        assert len(facts) == n_facts == len({key for _, key, _ in facts}) == len({value for _, _, value in facts})
        (start,) = [start for start, key, value in facts if (key, value) == (question[1], answer[1])]
        assert depth == pytest.approx(start / (len(context) - 2))


def test_every_query_of_a_multi_query_item_has_its_own_key_and_right_value():
    items = recall_items("multi_query", 256, 20, seed=0, text=TEXT)
    for context, question, answer in zip(items.context, items.question, items.answer, strict=True):
        known = {key: value for _, key, value in facts_of(context)}
        assert len(known) == 32 and len(set(question[1::2].tolist())) == 8
        assert [known[int(key)] for key in question[1::2]] == answer[1::2].tolist()


def test_the_last_assignment_of_a_variable_is_the_answer():
    items = recall_items("variable_tracking", 256, 50, seed=0, text=TEXT)
    for context, question, answer, depth in zip(items.context, items.question, items.answer, items.depth, strict=True):
        assigned = [(start, value) for start, key, value in facts_of(context) if key == question[1]]
        assert len(assigned) == 4 and len(facts_of(context)) == 8
        assert assigned[-1][1] == answer[1] and answer[1] not in [value for _, value in assigned[:-1]]
        assert depth == pytest.approx(assigned[-1][0] / (len(context) - 2))


def test_the_most_frequent_value_is_the_answer():
    items = recall_items("most_frequent", 256, 50, seed=0, text=TEXT)
    for context, question, answer in zip(items.context, items.question, items.answer, strict=True):
        values = [value for _, key, value in facts_of(context) if key == WORD]
        counts = sorted(((values.count(value), value) for value in set(values)), reverse=True)
        assert question[1] == WORD and counts[0][1] == answer[1] and counts[0][0] > counts[1][0]


def test_what_surrounds_the_facts_is_the_text_itself():
    items = recall_items("single_needle", 128, 5, seed=0, text=torch.arange(1000))
    for context in items.context:
        text = context < FIRST_KEY
        offsets = (context - torch.arange(len(context)))[text]
        assert text.sum() == len(context) - 2 and (offsets == offsets[0]).all()


def test_needles_are_spread_over_the_whole_context():
    depth = recall_items("single_needle", 512, 400, seed=0, text=TEXT).depth
    shares = torch.histc(depth.float(), bins=5, min=0, max=1) / 400
    assert 0 <= depth.min() < 0.02 and 0.98 < depth.max() <= 1
    assert (shares - 0.2).abs().max() < 0.08


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("needle", 256, TEXT), r"task=needle: unknown; valid: single_needle"),
        (("multi_key_32", 40, TEXT), r"seq_len=40: too short for 32 facts and their question; valid: >= 66"),
        (("single_needle", 512, TEXT[:100]), r"text of 100 tokens: shorter than one context; valid: >= 510"),
    ],
)
def test_impossible_items_are_refused_in_one_line(arguments, message):
    name, seq_len, text = arguments
    with pytest.raises(ValueError, match=message):
        tasks.recall_items(name, seq_len, 1, 0, text)
