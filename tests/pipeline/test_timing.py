import gc
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import intervals, timing
from pipeline.decoding import Decoder
from pipeline.memory import Ceilings, predict
from tests.pipeline.small import arm, fresh, model, tokens

PLAN = timing.Plan(n_prefill_trials=3, n_decode_trials=4, seed=0)
N_NEW = 1 + 4 * 3


def orders(seed: int, n_trials: int = 300) -> list[list[str]]:
    return list(timing.trial_orders(["a", "b", "c"], n_trials, np.random.default_rng(seed), math.inf))


def test_order_of_the_arms_is_random_seeded_and_complete() -> None:
    assert orders(0) == orders(0) != orders(1)
    assert all(sorted(order) == ["a", "b", "c"] for order in orders(0))
    firsts = Counter(order[0] for order in orders(0))
    assert all(70 <= firsts[name] <= 130 for name in "abc")


def test_trials_end_early_for_all_arms_alike_when_time_is_spent() -> None:
    arms = {name: fresh("full", N_NEW) for name in ("technique", "full")}
    plan = timing.Plan(n_prefill_trials=50, n_decode_trials=4, seed=0, max_s=1e-9)
    samples = timing.measure(arms, tokens(1, 32), tokens(1, N_NEW), plan)
    assert {len(arm.ttft_s) for arm in samples.values()} == {1}
    assert {len(arm.tpot_s) for arm in samples.values()} == {2}


def test_every_arm_does_the_same_work_on_the_same_tokens() -> None:
    fed: dict[str, list[Tensor]] = {"technique": [], "full": []}

    class Listening(Decoder):
        def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
            fed[self.name].append(ids_BT)
            return super().feed(ids_BT, all_logits)

    def listening(name: str) -> timing.NewDecoder:
        def new_decoder() -> Decoder:
            decoder = Listening(model(), arm("full")(N_NEW).cache)
            decoder.name = name
            return decoder

        return new_decoder

    timing.measure({name: listening(name) for name in fed}, tokens(2, 32), tokens(2, N_NEW), PLAN)
    assert all(torch.equal(one, other) for one, other in zip(fed["technique"], fed["full"], strict=True))


def test_every_arm_is_warmed_up_on_the_start_of_the_prompt_before_any_is_timed() -> None:
    fed: list[tuple[str, Tensor]] = []

    class Listening(Decoder):
        def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
            fed.append((self.name, ids_BT))
            return super().feed(ids_BT, all_logits)

    def new_decoder(name: str) -> Decoder:
        decoder = Listening(model(), arm("full")(N_NEW).cache)
        decoder.name = name
        return decoder

    prompt = tokens(1, 2 * timing.WARM_UP_TOKENS)
    samples = timing.measure({name: partial(new_decoder, name) for name in "ab"}, prompt, tokens(1, N_NEW), PLAN)
    assert [name for name, _ in fed[:2]] == ["a", "b"]
    assert all(torch.equal(ids, prompt[:, : timing.WARM_UP_TOKENS]) for _, ids in fed[:2])
    assert sum(torch.equal(ids, prompt) for _, ids in fed) == 2 * PLAN.n_prefill_trials
    assert {len(arm.ttft_s) for arm in samples.values()} == {PLAN.n_prefill_trials}


def test_samples_hold_every_step_and_the_bytes_after_it() -> None:
    arms = {"full": fresh("full", N_NEW), "window": fresh("sliding_window", N_NEW, kv_budget=8)}
    samples = timing.measure(arms, tokens(1, 32), tokens(1, N_NEW), PLAN)
    for one in samples.values():
        summed = timing.summarise(one, batch=1, weight_bytes=10**6)
        assert (len(summed.ttft_s), len(summed.tpot_s)) == (3, 4)
        assert len(summed.kv_bytes_held) == len(summed.step_s) + 1 == N_NEW
        assert summed.tpot_s[0] == pytest.approx(np.mean(summed.step_s[:3]))
        assert summed.peak_memory_bytes is not None
        assert summed.peak_memory_bytes > 10**6 + max(summed.kv_bytes_held)
    assert samples["window"].kv_bytes_held[-1] < samples["full"].kv_bytes_held[-1] / 2


def test_equal_work_is_no_difference_in_most_runs() -> None:
    includes = 0
    for seed in range(5):
        plan = timing.Plan(n_prefill_trials=1, n_decode_trials=10, seed=seed)
        arms = {name: fresh("full", 41) for name in ("full", "again")}
        samples = timing.measure(arms, tokens(1, 64), tokens(1, 41), plan)
        ratio = intervals.ratio(samples["again"].tpot_s, samples["full"].tpot_s, 500, seed)
        includes += ratio.low <= 1.0 <= ratio.high
    assert includes >= 3


def test_recomputing_is_found_slower_than_the_cache() -> None:
    plan = timing.Plan(n_prefill_trials=1, n_decode_trials=6, seed=0)
    arms = {"technique": fresh("no_cache", 13), "full": fresh("full", 13), "full_again": fresh("full", 13)}
    samples = timing.measure(arms, tokens(4, 1024), tokens(4, 13), plan)
    ceilings = Ceilings(1e10, 1e11)
    predicted = predict(
        model(), seq_len=1024, batch=4, n_new_tokens=13, kv_budget=None, recomputes=True, ceilings=ceilings
    )
    cost = timing.cost(**samples, batch=4, predicted=predicted, ceilings=ceilings, n_bootstrap=500, seed=0)
    assert cost.tpot_ratio.low > 1.5
    assert cost.technique.kv_bytes_held == [0] * 13
    assert cost.full_again.tpot_s == samples["full_again"].tpot_s != cost.full.tpot_s
    read_s = predicted.decode_bytes_per_step / ceilings.copy_bandwidth_bytes_per_s
    assert cost.decode_bandwidth_share == pytest.approx(read_s / cost.technique.tpot_s_p50)
    assert cost.full.decode_tokens_per_s > cost.technique.decode_tokens_per_s


def test_too_few_new_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="n_new_tokens=4: too few for the decode trials; valid: >= 5"):
        timing.measure({"full": fresh("full", 4)}, tokens(1, 8), tokens(1, 4), PLAN)


def test_threads_and_garbage_collection_come_back_after_an_exception() -> None:
    n_threads = torch.get_num_threads()
    pinned, uncollected = timing.pinned_threads(n_threads + 1), timing.no_garbage_collection()
    with pytest.raises(RuntimeError, match="stop"), pinned, uncollected:
        assert (torch.get_num_threads(), gc.isenabled()) == (n_threads + 1, False)
        raise RuntimeError("stop")
    assert (torch.get_num_threads(), gc.isenabled()) == (n_threads, True)
    assert gc.get_freeze_count() == 0
