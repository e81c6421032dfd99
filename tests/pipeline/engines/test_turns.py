"""Engines in turns: paired trials, a gate before any number, and one that fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.engines import turns
from pipeline.engines.agreement import NotTheModel
from pipeline.engines.hf_batch import HFBatch
from pipeline.engines.hf_generate import HFGenerate
from pipeline.engines.host import Host
from pipeline.engines.ours import Ours
from pipeline.engines.serving import Engine, InProcess, Loaded, Request, Served
from pipeline.record import Throughput
from tests.pipeline.engines import small

PLAN = turns.Plan(n_trials=3, max_s=60.0, n_one_by_one=2, n_bootstrap=200, seed=0)


class Wrong(HFBatch):
    """Right, but for one token."""

    def serve(self, requests: Sequence[Request]) -> Served:
        right = super().serve(requests)
        return replace(right, tokens=[*right.tokens[:-1], [*right.tokens[-1][:-1], -1]])


class Rounds(HFBatch):
    """Says another one of two words that are equally likely."""

    words = (0, 0)

    def serve(self, requests: Sequence[Request]) -> Served:
        right = super().serve(requests)
        least, other = self.words
        tokens = [[other if token == least else token for token in said] for said in right.tokens]
        return replace(right, tokens=tokens)


class Dies(InProcess):
    closed = False

    def serve(self, requests: Sequence[Request]) -> Served:
        raise RuntimeError("no memory left")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def of(tmp_path: Path) -> Loaded:
    return small.loaded(small.gpt2(), tmp_path)


def measured(
    engines: dict[str, Engine], of: Loaded, plan: turns.Plan = PLAN, requests: Sequence[Request] = small.MIXED
) -> dict[str, Throughput | Exception]:
    with Host() as host:
        return turns.measure(engines, of, requests, plan, host)


def test_other_tokens_are_an_error_and_no_time(of: Loaded) -> None:
    found = measured({"ours": Ours(of), "wrong": Wrong(of)}, of)
    assert isinstance(found["wrong"], NotTheModel)
    assert "request 3 differs from Transformers at new token 5 of 6" in str(found["wrong"])
    assert isinstance(found["ours"], Throughput)


def test_where_rounding_decides_between_two_words_either_is_right(tmp_path: Path) -> None:
    model = small.gpt2()
    of = small.loaded(model, tmp_path)
    said = HFBatch(of).serve(small.MIXED).tokens
    least = max(set(said[0]), key=said[0].count)
    other = next(word for word in range(least + 1, small.VOCAB_SIZE) if not any(word in tokens for tokens in said))
    with torch.no_grad():
        model.transformer.wte.weight[other] = model.transformer.wte.weight[least]  # embedding and head are tied
    rounds = Rounds(of)
    rounds.words = (least, other)
    found = measured({"rounds": rounds}, of)["rounds"]
    assert isinstance(found, Throughput) and found.engine is not None
    assert 0 < found.agreement.n_steps < sum(found.n_new_tokens) and found.agreement.tokens_equal == 1


def test_one_that_fails_is_ended_and_the_others_go_on(of: Loaded) -> None:
    dies = Dies()
    found = measured({"dies": dies, "ours": Ours(of)}, of)
    assert str(found["dies"]) == "no memory left" and dies.closed
    ours = found["ours"]
    assert isinstance(ours, Throughput) and ours.engine is not None
    assert [len(one.wall_s) for one in (ours.engine, ours.one_by_one, ours.batch)] == [3, 3, 3]
    assert ours.speedup_batch is not None and ours.speedup_batch.n == 3


def test_the_numbers_add_up(of: Loaded) -> None:
    ours = measured({"ours": Ours(of)}, of)["ours"]
    assert isinstance(ours, Throughput) and ours.engine is not None
    own = ours.engine
    assert own.tokens_per_s == pytest.approx(sum(ours.n_new_tokens) / sorted(own.wall_s)[1])
    assert len(own.ttft_s) == len(own.tpot_s) == 3 * len(small.MIXED)
    assert ours.agreement.tokens_equal == 1 and ours.agreement.n_steps == sum(ours.n_new_tokens)
    ratio = 1.0
    for one, other in zip(ours.one_by_one.wall_s, own.wall_s, strict=True):
        ratio *= (one / other) ** (1 / 3)
    assert ours.speedup_one_by_one is not None and ours.speedup_one_by_one.estimate == pytest.approx(ratio)


def test_one_by_one_serves_two_of_requests_that_are_alike_and_speed_is_that_of_a_token(of: Loaded) -> None:
    found = measured({"ours": Ours(of), "hf_generate": HFGenerate(of)}, of, requests=small.ALIKE)
    ours, alone = found["ours"], found["hf_generate"]
    assert isinstance(ours, Throughput) and ours.engine is not None and isinstance(alone, Throughput)
    assert (ours.one_by_one.n_requests, ours.batch.n_requests, ours.engine.n_requests) == (2, 4, 4)
    assert len(ours.one_by_one.ttft_s) == 3 * 2 and alone.engine == ours.one_by_one
    assert alone.agreement.n_steps == 2 * 12 and ours.agreement.n_steps == 4 * 12
    ratio = 1.0
    for one, own in zip(ours.one_by_one.wall_s, ours.engine.wall_s, strict=True):
        ratio *= ((one / (2 * 12)) / (own / (4 * 12))) ** (1 / 3)
    assert ours.speedup_one_by_one is not None and ours.speedup_one_by_one.estimate == pytest.approx(ratio)
    assert ours.one_by_one.tokens_per_s == pytest.approx(2 * 12 / sorted(ours.one_by_one.wall_s)[1])


def test_one_by_one_serves_all_where_lengths_differ(of: Loaded) -> None:
    assert turns.sample(small.MIXED, 2) == small.MIXED
    assert turns.sample(small.requests((5, 9), (5, 9), (5, 3)), 2) != small.requests((5, 9), (5, 9))
    found = measured({"ours": Ours(of)}, of)["ours"]
    assert isinstance(found, Throughput) and found.one_by_one.n_requests == len(small.MIXED)


def test_a_first_token_is_waited_for_from_the_arrival_of_its_request(of: Loaded) -> None:
    found = measured({"ours": Ours(of)}, of, replace(PLAN, n_trials=1), small.ARRIVING)["ours"]
    assert isinstance(found, Throughput)
    assert found.arrival_s == [one.arrival_s for one in small.ARRIVING] and found.one_by_one.n_requests == 3
    first, _, last = found.batch.ttft_s  # of one batch, whose first tokens are there at once
    assert first - last == pytest.approx(small.ARRIVING[-1].arrival_s)
    assert found.batch.wall_s[0] > first >= small.ARRIVING[-1].arrival_s


def test_a_baseline_that_is_asked_for_is_timed_once(of: Loaded) -> None:
    asked = HFBatch(of)
    batch = measured({"hf_batch": asked}, of)["hf_batch"]
    assert isinstance(batch, Throughput) and batch.engine is not None
    assert batch.engine.wall_s == batch.batch.wall_s
    assert batch.speedup_batch is not None and batch.speedup_batch.estimate == 1


def test_the_spread_is_that_of_the_batch_over_its_own_next_trial(of: Loaded) -> None:
    found = measured({"hf_batch": HFBatch(of)}, of, requests=small.ALIKE)["hf_batch"]
    assert isinstance(found, Throughput)
    first, second, third = found.batch.wall_s
    spread, steps = found.aa_batch, (second / first, third / second, first / third)
    assert spread is not None and spread.n == 3 and spread.estimate == pytest.approx(1)
    assert spread.low < 1 < spread.high and max(steps) / spread.high < 1 + 1e-9  # few trials: it is stretched


def test_tokens_are_held_against_one_by_one_where_it_serves_every_request(of: Loaded) -> None:
    """A batch that pads wrongly is found out itself, and not whoever is right."""
    served = {turns.ONE_BY_ONE: [HFGenerate(of).serve(small.MIXED)], turns.BATCH: [Wrong(of).serve(small.MIXED)]}
    both = turns.Turns(dict.fromkeys(served, small.MIXED), dict(served))
    assert both.reference == served[turns.ONE_BY_ONE][0].tokens
    sampled = turns.Turns({turns.ONE_BY_ONE: small.MIXED[:2], turns.BATCH: small.MIXED}, dict(served))
    assert sampled.reference == served[turns.BATCH][0].tokens


def test_a_single_trial_has_no_spread(of: Loaded) -> None:
    found = measured({"ours": Ours(of)}, of, replace(PLAN, n_trials=1))["ours"]
    assert isinstance(found, Throughput) and found.aa_batch is None
    assert found.speedup_batch is not None and found.speedup_batch.n == 1


def test_what_takes_long_takes_part_in_fewer_trials(of: Loaded) -> None:
    found = measured({"ours": Ours(of)}, of, replace(PLAN, max_s=0.0))["ours"]
    assert isinstance(found, Throughput) and found.engine is not None
    assert len(found.engine.wall_s) == 1 and found.speedup_batch is not None and found.speedup_batch.n == 1


def test_a_cache_that_loses_something_may_say_other_words(tmp_path: Path) -> None:
    of = small.loaded(small.gpt2(), tmp_path, "kv_int4", is_lossless=False)
    found = measured({"ours": Ours(of)}, of)["ours"]
    assert isinstance(found, Throughput) and found.engine is not None
    assert found.agreement.n_steps == sum(found.n_new_tokens) and 0 <= found.agreement.tokens_equal <= 1
