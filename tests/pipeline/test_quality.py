import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from pipeline import ROOT, corpus, models, quality
from pipeline.decoding import Decoder
from pipeline.memory.costs import kv_bytes_per_token
from pipeline.quality import PROTOCOLS, Arms, Protocol, Resampling
from pipeline.tasks import IGNORED, RecallItems, recall_items
from tests.pipeline.small import arm, composed, model, tokens

RESAMPLING = Resampling(n_bootstrap=200, seed=0)
TEXT = tokens(1, 5000)[0] % corpus.N_TEXT_IDS


def items(task: str = "multi_query", n_items: int = 6) -> RecallItems:
    return recall_items(task, 100, n_items, seed=0, text=TEXT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_full_cache_does_not_differ_from_itself(protocol: Protocol) -> None:
    found = quality.recall(Arms(arm("full"), arm("full")), "multi_query", items(), protocol, RESAMPLING)
    assert found.top1_agreement == 1.0 and found.kl_to_full == 0.0
    for difference in (found.accuracy_difference, found.nll_difference):
        assert (difference.estimate, difference.low, difference.high, difference.n) == (0, 0, 0, 6)


def test_every_item_keeps_its_scores_its_depth_and_its_bytes() -> None:
    given = items(n_items=quality.BATCH + 3)  # more than one batch
    arms = Arms(arm("sliding_window", kv_budget=32), arm("full"))
    found = quality.recall(arms, "multi_query", given, "query_agnostic", RESAMPLING)
    kept = found.items
    assert kept.depth == pytest.approx(given.depth.tolist(), rel=1e-5)
    means = {"correct": found.accuracy, "correct_full": found.accuracy_full, "nll": found.nll,
             "nll_full": found.nll_full}  # fmt: skip
    for name, mean in means.items():
        assert len(getattr(kept, name)) == found.n_items
        assert sum(getattr(kept, name)) / found.n_items == pytest.approx(mean, rel=1e-5)
    per_token = kv_bytes_per_token(model().config, model().dtype)
    assert 32 * per_token <= found.kv_bytes_held <= 1.1 * 32 * per_token
    assert 100 * per_token <= found.kv_bytes_held_full <= 1.1 * 100 * per_token


def test_every_stream_keeps_its_scores_and_its_bytes() -> None:
    streams = quality.text_streams(TEXT, 64, n_streams=3, n_scored=10)
    found = quality.streaming_text(Arms(arm("no_cache"), arm("full")), streams, 10, RESAMPLING)
    assert found.items.depth == []
    assert sum(found.items.nll) / 3 == pytest.approx(found.nll, rel=1e-5)
    assert all(0 <= share <= 1 for share in found.items.correct) and len(found.items.correct_full) == 3
    assert found.kv_bytes_held == 0 < found.kv_bytes_held_full


@pytest.mark.parametrize("strategy", ["sliding_window", "random_eviction", "attention_sink"])
def test_same_seed_gives_the_same_quality_twice(strategy: str) -> None:
    def measured() -> tuple[object, ...]:
        arms = Arms(arm(strategy, kv_budget=32), arm("full"))
        recalled = [quality.recall(arms, "multi_query", items(), protocol, RESAMPLING) for protocol in PROTOCOLS]
        streams = quality.text_streams(TEXT, 96, 3, n_scored=16)
        return *recalled, quality.streaming_text(arms, streams, 16, RESAMPLING)

    first = measured()
    assert first == measured()
    assert all(found.kl_to_full > 0 for found in first)  # something was evicted


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_recall_equals_one_plain_forward_pass_for_each_item(protocol: Protocol) -> None:
    given = items(n_items=quality.BATCH + 3)  # more than one batch
    found = quality.recall(Arms(arm("full"), arm("no_cache")), "multi_query", given, protocol, RESAMPLING)
    nll, correct = [], []
    for context, question, answer in zip(given.context, given.question, given.answer, strict=True):
        prompt = torch.cat([context, question]) if protocol == "query_aware" else context
        logits = model()(torch.cat([prompt, question])[None]).logits[0, len(prompt) :]
        asked = answer != IGNORED
        nll.append(-logits.log_softmax(-1)[asked, answer[asked]].mean().item())
        correct.append((logits.argmax(-1) == answer)[asked].double().mean().item())
    for measured_nll in (found.nll, found.nll_full):
        assert measured_nll == pytest.approx(sum(nll) / len(nll), abs=1e-9)
    for accuracy in (found.accuracy, found.accuracy_full):
        assert accuracy == pytest.approx(sum(correct) / len(correct))


def test_text_is_scored_after_eviction_and_never_beyond_seq_len() -> None:
    class Listening(Decoder):
        furthest: ClassVar[list[int]] = []

        def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
            logits = super().feed(ids_BT, all_logits)
            self.furthest.append(self.n_seen)
            return logits

    def listening(headroom: int) -> Decoder:
        return Listening(model(), arm("sliding_window", kv_budget=16)(headroom).cache)

    streams = quality.text_streams(TEXT, 64, n_streams=3, n_scored=10)
    found = quality.streaming_text(Arms(listening, arm("full")), streams, 10, RESAMPLING)
    assert Listening.furthest == list(range(54, 65))
    assert (found.n_context, found.n_tokens, found.nll_difference.n) == (54, 30, 3)


def test_text_loss_equals_one_plain_forward_pass() -> None:
    streams = quality.text_streams(TEXT, 64, n_streams=3, n_scored=10)
    found = quality.streaming_text(Arms(arm("full"), arm("no_cache")), streams, 10, RESAMPLING)
    log_probs = model()(streams[:, :-1]).logits.log_softmax(-1)[:, -10:]
    expected = -log_probs.gather(2, streams[:, -10:, None]).mean().item()
    assert (found.nll, found.nll_full) == pytest.approx((expected, expected), abs=1e-9)


def test_text_streams_do_not_overlap_and_need_enough_text() -> None:
    text = torch.arange(1000)
    streams = quality.text_streams(text, 64, n_streams=15, n_scored=10)
    assert streams.shape == (15, 65)
    assert len(streams.unique()) == streams.numel()
    with pytest.raises(ValueError, match=r"n_text_streams=16: .* valid: 1\.\.15"):
        quality.text_streams(text, 64, n_streams=16, n_scored=10)
    with pytest.raises(ValueError, match=r"n_text_tokens=64: .* valid: 1\.\.63"):
        quality.text_streams(text, 64, n_streams=2, n_scored=64)


def test_nan_stops_the_measurement() -> None:
    broken = copy.deepcopy(model())
    torch.nn.init.constant_(broken.get_output_embeddings().weight, float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        quality.recall(Arms(arm("full", of=broken), arm("full")), "single_needle", items("single_needle"),
                       "query_aware", RESAMPLING)  # fmt: skip


def test_what_was_forgotten_cannot_be_recalled() -> None:
    from pipeline.config import Experiment

    loaded = models.load(Experiment.from_hydra(composed()).model, "float32", "cpu", seed=0)
    assert loaded.tokenizer_path == Path(ROOT, "models/tiny/tokenizer.json")
    text = corpus.held_out_tokens(loaded.tokenizer_path)
    needles = recall_items("single_needle", 256, 64, seed=0, text=text)
    arms = Arms(arm("sliding_window", kv_budget=16, of=loaded.model), arm("full", of=loaded.model))
    found = quality.recall(arms, "single_needle", needles, "query_agnostic", RESAMPLING)
    assert found.accuracy_full >= 0.9
    assert found.accuracy <= 0.2  # one value of 128 by chance, and the needles in the last 16 tokens
    assert found.accuracy_difference.high < -0.5
