import pytest
import torch

from pipeline import answers, kept, tasks
from pipeline.mechanisms import Lab
from tests.pipeline import small

TEXT = small.tokens(1, 5000)[0] % 1024


def test_kinds_name_every_token_of_a_prompt():
    items = tasks.recall_items("multi_key_8", 64, 5, seed=0, text=TEXT)
    kind = kept.kinds(answers.prompt(items, "query_aware"), items)
    counts = {name: (kind == index).sum(1).unique().tolist() for index, name in enumerate(kept.KINDS)}
    assert counts == {"asked key": [1], "asked value": [1], "other keys": [7], "other values": [7],
                      "question": [2], "text": [46]}  # fmt: skip
    places = kind.argsort(dim=1)[:, :2]  # the asked fact: its key, then its value right behind it
    assert bool((places[:, 1] == places[:, 0] + 1).all())


def test_a_window_holds_its_tokens_and_no_others():
    with answers.arm(small.model(), "sliding_window", kv_budget=6)(1) as decoder:
        decoder.feed(small.tokens(2, 20))
        assert kept.kept_share(decoder).expand(2, -1).tolist() == [[0.0] * 14 + [1.0] * 6] * 2


def test_shares_are_counted_layer_by_layer_and_head_by_head():
    with answers.arm(small.model(), "random_eviction", "strategy.scorer.window_size=2", kv_budget=5)(1) as decoder:
        decoder.feed(small.tokens(1, 20))
        share = torch.zeros(20)
        for layer in decoder.cache.layers:
            for head in layer.positions[0, :, : layer.n_held]:
                share[head] += 1 / (len(decoder.cache.layers) * len(layer.positions[0]))
        torch.testing.assert_close(kept.kept_share(decoder)[0], share)


def test_every_scorer_keeps_its_budget_under_both_protocols(monkeypatch):
    monkeypatch.setattr(kept, "SEQ_LEN", 160)
    found = kept.measure(Lab(small.model(), TEXT, n_items=3))
    assert {(item.technique, item.protocol) for item in found} >= {("h2o", "query_aware"), ("oracle", "query_agnostic")}
    for item in found:
        mean = sum(item.by_depth) / len(item.by_depth)
        assert item.n_items == 3 and mean == pytest.approx(40 / 160, abs=0.01)
