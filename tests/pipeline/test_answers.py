import pytest
import torch

from pipeline import answers, quality
from pipeline.quality import PROTOCOLS, Arms, Protocol, Resampling
from pipeline.tasks import recall_items
from tests.pipeline import small

TEXT = small.tokens(1, 5000)[0] % 1024


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_and_divergence_are_those_of_a_record(protocol: Protocol) -> None:
    items = recall_items("multi_query", 100, 5, seed=0, text=TEXT)
    pair = Arms(small.arm("sliding_window", kv_budget=32), small.arm("full"))
    recorded = quality.recall(pair, "multi_query", items, protocol, Resampling(100, 0))
    technique, full = (answers.replies(arm, items, protocol) for arm in (pair.technique, pair.full))
    assert answers.correct(technique, items).mean().item() == pytest.approx(recorded.accuracy)
    assert answers.divergence(technique, full).mean().item() == pytest.approx(recorded.kl_to_full)


def test_an_arm_is_built_by_name_with_its_parts_changed() -> None:
    with answers.arm(small.model(), "snapkv", "strategy.scorer.window_size=4", kv_budget=9)(1) as decoder:
        answers.fed(decoder, small.tokens(2, 20), small.tokens(2, 1))
        assert [layer.n_held for layer in decoder.cache.layers] == [9, 9]


def test_the_oracle_is_shown_the_question() -> None:
    items = recall_items("single_needle", 64, 3, seed=0, text=TEXT)
    logits = answers.replies(answers.arm(small.model(), "oracle", kv_budget=16), items, "query_agnostic")
    assert logits.shape == (3, 1, small.model().config.vocab_size) and bool(torch.isfinite(logits).all())
