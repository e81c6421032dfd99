"""All engines of one point in turns: the same requests, a random order in every trial, one record for each engine."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from pipeline import intervals, timing
from pipeline.engines import agreement
from pipeline.engines.hf_batch import HFBatch
from pipeline.engines.hf_generate import HFGenerate
from pipeline.engines.host import Host
from pipeline.engines.serving import Engine, Loaded, Request, Served
from pipeline.engines.vllm import VLLM
from pipeline.record import Agreement, Interval, Serving, Throughput

ONE_BY_ONE, BATCH = "one_by_one", "batch"
BASELINES: dict[type, str] = {HFGenerate: ONE_BY_ONE, HFBatch: BATCH}
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Plan:
    """`n_trials`, of which an engine takes part in as many as fit into `max_s` seconds, and in one at least.

    Of requests that are all alike, one by one serves only `n_one_by_one`: its time for a token is that of all.
    """

    n_trials: int
    max_s: float
    n_one_by_one: int
    n_bootstrap: int
    seed: int


@dataclass
class Turns:
    """What every engine gave, trial by trial, None where it took no part; and why those that failed did."""

    asked: Mapping[str, Sequence[Request]]
    served: dict[str, list[Served | None]]
    failed: dict[str, Exception] = field(default_factory=dict)
    agreed: dict[str, Agreement] = field(default_factory=dict)  # of exact ones, in their last trial

    def done(self, name: str) -> list[Served]:
        return [one for one in self.served[name] if one is not None]

    def speedup(self, name: str, over: str, plan: Plan) -> Interval:
        """Tokens per second over those of another, in the trials in which both took part; it may have served fewer."""
        pairs = [(own, other) for own, other in zip(self.served[name], self.served[over], strict=True) if own and other]
        own_s, other_s = ([pair[side].s_per_token for pair in pairs] for side in (0, 1))
        return intervals.ratio(other_s, own_s, plan.n_bootstrap, plan.seed)

    @property
    def reference(self) -> Sequence[Sequence[int]] | None:
        """Tokens of Transformers: one by one, without padding, or in one batch where that alone serves every request.
        None as long as it has served nothing.
        """
        serves_all = len(self.asked[ONE_BY_ONE]) == len(self.asked[BATCH])
        done = self.done(ONE_BY_ONE if serves_all else BATCH)
        return done[0].tokens if done else None

    def spread(self, plan: Plan) -> Interval | None:
        """The batch over itself: each trial over the next one, and the last over the first; None of a single trial.

        Its estimate is 1 whatever was measured; its ends say how far the same work lies apart, one trial from another.
        """
        wall_s = [one.wall_s for one in self.done(BATCH)]
        if len(wall_s) == 1:
            return None
        return intervals.ratio([*wall_s[1:], wall_s[0]], wall_s, plan.n_bootstrap, plan.seed)


def measure(
    engines: Mapping[str, Engine], loaded: Loaded, requests: Sequence[Request], plan: Plan, host: Host
) -> dict[str, Throughput | Exception]:
    """Of each engine by name. One that fails is ended, and gives its error while the others go on.

    Raises what a baseline raises.
    """
    baselines: dict[str, Engine] = {ONE_BY_ONE: HFGenerate(loaded), BATCH: HFBatch(loaded)}
    scores, failed = _scored(engines, loaded, requests)
    others = {name: one for name, one in engines.items() if type(one) not in BASELINES}
    timed = {name: one for name, one in others.items() if name in scores and agreement.is_the_model(scores[name])}
    turns = _taken({**timed, **baselines}, loaded, requests, plan)
    failed |= turns.failed
    for name in failed.keys() & engines.keys():
        host.end(engines[name])
    for name in failed.keys() & baselines.keys():
        raise failed[name]
    return {
        name: failed[name] if name in failed else _throughput(name, engine, scores[name], requests, turns, plan)
        for name, engine in engines.items()
    }


def _scored(
    engines: Mapping[str, Engine], loaded: Loaded, requests: Sequence[Request]
) -> tuple[dict[str, Agreement], dict[str, Exception]]:
    """Log-probabilities of those that are not exact, before they are timed; tokens are compared as they come."""
    scores: dict[str, Agreement] = {}
    failed: dict[str, Exception] = {}
    n_steps = sum(one.n_new_tokens for one in requests)
    for name, engine in engines.items():
        try:
            if isinstance(engine, VLLM) and not engine.is_exact:
                scores[name] = agreement.of_logits(engine, loaded, requests)
            else:
                scores[name] = Agreement(n_steps=n_steps, tokens_equal=1.0)
        except Exception as error:
            failed[name] = error
    return scores, failed


def sample(requests: Sequence[Request], n: int) -> Sequence[Request]:
    """The first `n` of requests that are equal in both lengths and arrive at once; of others all."""
    kinds = {(len(one.prompt), one.n_new_tokens, one.arrival_s) for one in requests}
    return requests[:n] if len(kinds) == 1 else requests


def _taken(arms: Mapping[str, Engine], loaded: Loaded, requests: Sequence[Request], plan: Plan) -> Turns:
    asked = dict.fromkeys(arms, requests) | {ONE_BY_ONE: sample(requests, plan.n_one_by_one)}
    turns = Turns(asked, {name: [] for name in arms})
    for name, engine in arms.items():
        _take(name, engine, [_short(one) for one in asked[name]], turns)
    turns.served = {name: [] for name in arms}
    rng, spent_s = np.random.default_rng(plan.seed), dict.fromkeys(arms, 0.0)
    with timing.no_garbage_collection():
        for _ in range(plan.n_trials):
            for index in rng.permutation(len(arms)):
                name = list(arms)[index]
                n_done = len(turns.done(name))
                if name in turns.failed or (n_done and spent_s[name] * (n_done + 1) / n_done > plan.max_s):
                    turns.served[name].append(None)
                    continue
                started = time.perf_counter()
                _take(name, arms[name], asked[name], turns)
                spent_s[name] += time.perf_counter() - started
            _compare(arms, turns, loaded)
    return turns


def _short(request: Request) -> Request:
    return Request(request.prompt, min(WARM_UP_TOKENS, request.n_new_tokens))


def _take(name: str, engine: Engine, requests: Sequence[Request], turns: Turns) -> None:
    gc.collect()  # the caches of whoever was before
    try:
        turns.served[name].append(engine.serve(requests))
    except Exception as error:
        turns.failed[name] = error
        turns.served[name].append(None)


def _compare(arms: Mapping[str, Engine], turns: Turns, loaded: Loaded) -> None:
    """The gate: what an exact engine said in its last trial are the tokens of Transformers."""
    if (reference := turns.reference) is None:
        return
    for name, engine in arms.items():
        own, requests = turns.served[name][-1], turns.asked[name]
        try:
            if own is not None and engine.is_exact:
                turns.agreed[name] = agreement.of_tokens(own.tokens, reference[: len(requests)], requests, loaded)
        except agreement.NotTheModel as error:
            turns.failed.setdefault(name, error)


def _throughput(
    name: str, engine: Engine, score: Agreement, requests: Sequence[Request], turns: Turns, plan: Plan
) -> Throughput:
    name = BASELINES.get(type(engine), name)  # a baseline is timed once, whether it is asked for or not
    ran, score = name in turns.served, turns.agreed.get(name, score)
    if ran and not engine.is_exact and score.correlation is None:  # a cache that loses something says other words
        equal = [a == b for own, one in zip(turns.done(name)[0].tokens, turns.reference or [], strict=True)
                 for a, b in zip(own, one, strict=True)]  # fmt: skip
        score = Agreement(n_steps=len(equal), tokens_equal=float(np.mean(equal)))
    return Throughput(
        n_prompt_tokens=[len(one.prompt) for one in requests],
        n_new_tokens=[one.n_new_tokens for one in requests],
        agreement=score,
        arrival_s=[one.arrival_s for one in requests],
        engine=_serving(turns.done(name), turns.asked[name], engine) if ran else None,
        one_by_one=_serving(turns.done(ONE_BY_ONE), turns.asked[ONE_BY_ONE]),
        batch=_serving(turns.done(BATCH), turns.asked[BATCH]),
        speedup_one_by_one=turns.speedup(name, ONE_BY_ONE, plan) if ran else None,
        speedup_batch=turns.speedup(name, BATCH, plan) if ran else None,
        aa_batch=turns.spread(plan),
    )


def _serving(trials: Sequence[Served], requests: Sequence[Request], engine: Engine | None = None) -> Serving:
    n_tokens = sum(map(len, trials[0].tokens))
    ttft_s = [t[0] - one.arrival_s for trial in trials for t, one in zip(trial.token_s, requests, strict=True)]
    tpot_s = [(t[-1] - t[0]) / (len(t) - 1) for trial in trials for t in trial.token_s if len(t) > 1]
    wall_s = [trial.wall_s for trial in trials]
    return Serving(
        n_requests=len(trials[0].tokens),
        wall_s=wall_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=n_tokens / median(wall_s),
        ttft_s_p50=_percentile(ttft_s, 50),
        ttft_s_p90=_percentile(ttft_s, 90),
        tpot_s_p50=_percentile(tpot_s, 50),
        tpot_s_p90=_percentile(tpot_s, 90),
        start_up_s=engine.start_up_s if engine else 0.0,
        version=engine.version if engine else None,
        kv_bytes_allocated=max(trial.kv_bytes_allocated for trial in trials),
        kv_bytes_used=max(trial.kv_bytes_used for trial in trials),
        **_blocks(trials),
    )


def _blocks(trials: Sequence[Served]) -> dict[str, int]:
    pools = [trial.blocks for trial in trials if trial.blocks is not None]
    if not pools:
        return {}
    most = {name: max(getattr(pool, name) for pool in pools) for name in ("n_preemptions", "n_prefix_tokens")}
    return most | {
        "n_blocks": pools[0].n_blocks,
        "block_size": pools[0].block_size,
        "n_blocks_used": max(pool.n_used for pool in pools),
        "n_prefix_hits": max(pool.n_prefix_hits for pool in pools),
    }


def _percentile(samples: Sequence[float], share: float) -> float:
    return float(np.percentile(samples or [np.nan], share))
