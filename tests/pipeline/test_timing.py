import gc
import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import intervals, timing
from pipeline.decoding import Decoder
from pipeline.memory.costs import predict
from pipeline.memory.measured import Ceilings
from strategies.calibration import calibrate
from tests.pipeline.small import arm, fresh, model, tokens
from tests.strategies import techniques

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

    prompt = tokens(1, 2 * timing.WARM_UP_TOKENS["cpu"])
    samples = timing.measure({name: partial(new_decoder, name) for name in "ab"}, prompt, tokens(1, N_NEW), PLAN)
    assert [name for name, _ in fed[:2]] == ["a", "b"]
    assert all(torch.equal(ids, prompt[:, : timing.WARM_UP_TOKENS["cpu"]]) for _, ids in fed[:2])
    assert sum(torch.equal(ids, prompt) for _, ids in fed) == 2 * PLAN.n_prefill_trials
    assert {len(arm.ttft_s) for arm in samples.values()} == {PLAN.n_prefill_trials}


def test_samples_hold_every_step_and_the_bytes_after_it() -> None:
    arms = {"full": fresh("full", N_NEW), "window": fresh("sliding_window", N_NEW, kv_budget=8)}
    samples = timing.measure(arms, tokens(1, 32), tokens(1, N_NEW), PLAN)
    for one in samples.values():
        summed = timing.summarise(one, batch=1, weights={"all": 10**6})
        assert (len(summed.ttft_s), len(summed.tpot_s)) == (3, 4)
        assert len(summed.kv_bytes_held) == len(summed.step_s) + 1 == N_NEW
        assert summed.tpot_s[0] == pytest.approx(np.mean(summed.step_s[:3]))
        assert summed.peak_memory_bytes == max(summed.step_peak_memory_bytes)
        assert len(summed.step_peak_memory_bytes) == N_NEW
        assert min(summed.step_peak_memory_bytes) > 10**6 + max(summed.kv_bytes_held)
    assert samples["window"].kv_bytes_held[-1] < samples["full"].kv_bytes_held[-1] / 2


def test_memory_by_step_is_the_same_in_every_run() -> None:
    def peaks() -> dict[str, list[int]]:
        arms = {name: fresh(name, N_NEW) for name in ("full", "no_cache")}
        samples = timing.measure(arms, tokens(1, 32), tokens(1, N_NEW), PLAN)
        return {name: arm.peak_growth_bytes for name, arm in samples.items()}

    assert peaks() == peaks()


def test_a_step_takes_less_memory_than_prefill_unless_everything_is_computed_again() -> None:
    arms = {"full": fresh("full", N_NEW), "no_cache": fresh("no_cache", N_NEW)}
    samples = timing.measure(arms, tokens(1, 512), tokens(1, N_NEW), PLAN)
    full, no_cache = samples["full"].peak_growth_bytes, samples["no_cache"].peak_growth_bytes
    assert max(full[1:]) < full[0]
    assert no_cache[1:] == sorted(set(no_cache[1:]))
    assert no_cache[-1] > no_cache[0]


def test_the_reference_against_itself_is_counted_once() -> None:
    reference = fresh("full", N_NEW)
    arms = {"full": reference, "full_again": reference}
    decoders = {name: new_decoder() for name, new_decoder in arms.items()}
    samples = {name: timing.Samples() for name in arms}
    with decoders["full"]:
        decoders["full"].feed(tokens(1, 32))
    timing._count_memory(arms, decoders, tokens(1, 4), samples)  # the second decoder has no prompt to go on from
    assert len(samples["full"].peak_growth_bytes) == 4
    assert samples["full"].peak_growth_bytes == samples["full_again"].peak_growth_bytes


def test_a_step_that_takes_long_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "COUNTING_S", 0.0)
    samples = timing.measure({"full": fresh("full", N_NEW)}, tokens(1, 32), tokens(1, N_NEW), PLAN)
    assert len(samples["full"].peak_growth_bytes) == 2
    assert len(samples["full"].kv_bytes_held) == N_NEW


@pytest.mark.parametrize("strategy", techniques.ALL)
def test_counting_memory_leaves_what_is_timed_as_it_was(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "COUNTING_S", math.inf)  # a first step may compile
    kv_budget = 48 if techniques.evicts(strategy) else None
    of = model(n_layers=4, head_dim=32)  # layers to pair, and whole groups to code
    calibrate(of, tokens(1, 64))
    try:
        counted, other = (arm(strategy, kv_budget, of)(6) for _ in range(2))
    except (NotImplementedError, ImportError) as error:  # there is no such device or package here
        pytest.skip(str(error))
    prompt, stream = tokens(2, 64), tokens(2, 6)
    for decoder in (counted, other):
        with decoder:
            decoder.foresee(torch.cat([prompt, stream], dim=1), prompt.shape[1])
            decoder.feed(prompt)
    assert len(list(timing.untimed_steps(counted, stream))) == 1 + 6
    with counted:
        after = counted.teacher_force(stream)
    with other:
        expected = other.teacher_force(stream)
    assert torch.equal(after, expected)
    assert counted.kv_bytes_held == other.kv_bytes_held


def test_the_copy_that_memory_is_counted_on_shares_the_weights_and_decodes_alike() -> None:
    said: list[Tensor] = []

    class Listening(Decoder):
        def feed(self, ids_BT: Tensor, all_logits: bool = False) -> Tensor:
            said.append(super().feed(ids_BT, all_logits))
            return said[-1]

    cache: Any = arm("attention_sink", 24)(6).cache
    cache.prefetch_stream = torch.Stream(device="cpu")  # as a cache that offloads has one
    decoder = Listening(model(), cache)
    with decoder:
        decoder.feed(tokens(1, 32))
    growths = timing.peak_growths(timing.untimed_steps(decoder, tokens(1, 6)), "cpu")
    assert growths[0] < 2 * decoder.kv_bytes_held < sum(p.nbytes for p in model().parameters())
    with decoder:
        decoder.teacher_force(tokens(1, 6))
    assert all(torch.equal(copied, original) for copied, original in zip(said[1:7], said[7:], strict=True))


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
    predicted = predict(model(), None, seq_len=1024, batch=4, ceilings=ceilings)
    weights = {"weights": {"all": 10**6}, "weights_full": {"all": 2 * 10**6}}
    cost = timing.cost(**samples, **weights, batch=4, predicted=predicted, ceilings=ceilings, n_bootstrap=500, seed=0)
    assert cost.technique.weight_bytes == {"all": 10**6} and cost.full.weight_bytes == {"all": 2 * 10**6}
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
