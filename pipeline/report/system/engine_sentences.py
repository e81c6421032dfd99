"""Sentences about engines. Each is a rule over records, and each speed names the baseline that it is beside."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from pipeline.findings import quantities as q
from pipeline.findings.evidence import BASELINE, Row, group
from pipeline.record import Interval, Serving, Throughput
from pipeline.report.system.engines import (
    BATCH,
    DTYPES,
    EQUAL_LENGTHS,
    MIXED,
    ONE_BY_ONE,
    OURS,
    PREFIX,
    VLLM,
    Point,
    Served,
    points,
    used_share,
    verdict,
)

NO_CACHE = "no_cache"
BESIDE: dict[str, Callable[[Throughput], Interval | None]] = {
    "Transformers one by one": lambda found: found.speedup_one_by_one,
    "Transformers in one batch": lambda found: found.speedup_batch,
}


def sentences(rows: Sequence[Row]) -> list[str]:
    found = points(rows)
    if not found:
        return []
    alike, mixed = ([point for point in found if point.workload == asked] for asked in (EQUAL_LENGTHS, MIXED))
    at_once = [point for point in mixed if not point.arrives_over_s]
    said = [*_gate(found), *_beside_baselines(alike, "prompts of one length")]
    said += [*_beside_baselines(at_once, "mixed lengths"), *_waiting(mixed), *_spread(found)]
    said += [*_without_cache(alike), *_used(found)]
    return [*said, *_start(found), *_dtypes(found), *_prefix(found)]


def _gate(found: Sequence[Point]) -> Iterator[str]:
    exact = [one for point in found for one in point
             if one.throughput.agreement.correlation is None and not _may_be_reference(one)]  # fmt: skip
    if exact:
        equal = [one for one in exact if one.throughput.agreement.tokens_equal == 1]
        n_tokens = sum(one.throughput.agreement.n_steps for one in equal)
        yield (
            f"Of {q.plural(len(exact), 'run')} of engines {len(equal)} said the greedy tokens of Transformers: "
            f"{q.plural(n_tokens, 'token')}, of each request those before two words that the model itself finds "
            "equally likely to rounding. What an exact engine says otherwise is an error and no result. One batch, and "
            "one by one where it served every request, are not counted: one of them is what is compared with."
        )


def _may_be_reference(one: Served) -> bool:
    """What would be compared with itself."""
    return one.name == BATCH or (one.name == ONE_BY_ONE and not one.is_sample)


def _beside_baselines(found: Sequence[Point], where: str) -> Iterator[str]:
    """`vLLM, prompts of one length: 1.02× to 8.90× the tokens per second of Transformers one by one (faster at 3 …`"""
    engines = group([one for point in found for one in point], lambda one: (one.name, one.row.strategy))
    for (name, strategy), members in engines.items():
        if name in (ONE_BY_ONE, BATCH) or strategy != BASELINE:
            continue
        for baseline, of in BESIDE.items():
            if ratios := [ratio for one in members if (ratio := of(one.throughput))]:
                yield _range(members[0].title, where, baseline, ratios)


def _range(title: str, where: str, baseline: str, found: Sequence[Interval]) -> str:
    ratios = [ratio.estimate for ratio in found]
    words = q.words(f"{word} at {q.count(len(members))}" for word, members in group(found, verdict).items())
    ends = q.ratio(min(ratios)) if len(ratios) == 1 else f"{q.ratio(min(ratios))} to {q.ratio(max(ratios))}"
    return f"{title}, {where}: {ends} the tokens per second of {baseline} ({words} of {q.plural(len(found), 'point')})."


def _waiting(found: Sequence[Point]) -> Iterator[str]:
    """`First tokens, 8 prompts of …, arriving over 6.1 s: half are there after 412 ms (vLLM) and …, nine in ten …`"""
    for point in found:
        served = [(one, one.serving) for one in point if one.serving and not one.is_sample]
        if served:
            half = q.words(f"{q.seconds(own.ttft_s_p50)} ({one.title})" for one, own in served)
            most = q.words(f"{q.seconds(own.ttft_s_p90)} ({one.title})" for one, own in served)
            took = q.words(f"{q.seconds(one.took_s(50))} ({one.title})" for one, _ in served)
            chosen = " The rate at which they arrive is ours." if point.arrives_over_s else ""
            yield (
                f"First tokens, {point.name}: half are there after {half}, nine in ten after {most}, each from its own "
                f"arrival; half of the requests are done after {took}.{chosen}"
            )


def _spread(found: Sequence[Point]) -> Iterator[str]:
    """Of points with one trial of the batch there is none."""
    spreads = [spread for point in found if (spread := point.engines[0].throughput.aa_batch) and spread.n > 1]
    if spreads:
        low, high = min(spread.low for spread in spreads), max(spread.high for spread in spreads)
        yield (
            f"How far the batch's own trials lie apart, each over the next: {q.ratio(low)} to {q.ratio(high)} over all "
            "points. That is no arm of its own; the interval of a speed-up holds it, and words go by that alone."
        )


def _without_cache(found: Sequence[Point]) -> Iterator[str]:
    for point in found:
        without = point.of(OURS, NO_CACHE)
        if without is None or without.serving is None:
            continue
        rate = without.serving.tokens_per_s
        gains = [f"{one.title} {q.ratio(one.serving.tokens_per_s / rate)}"
                 for one in point if one.serving and one is not without]  # fmt: skip
        yield (
            f"Tokens per second over our loop without a cache, {point.name} (medians, without intervals): "
            f"{q.words(gains)}."
        )


def _used(found: Sequence[Point]) -> Iterator[str]:
    """Whether blocks save memory, by what is in use; the pool itself is as large as it was asked to be."""
    for workload, where in ((EQUAL_LENGTHS, "prompts of one length"), (MIXED, "mixed lengths")):
        shares = [used_share(one) for point in found if point.workload == workload
                  if (one := point.of(VLLM)) and one.serving]  # fmt: skip
        if shares:
            ends = " to ".join(dict.fromkeys(q.share(end) for end in (min(shares), max(shares))))
            yield (
                f"The blocks that vLLM used at most hold {ends} of the bytes "
                f"of Transformers' batch, {where}; the pool that it allocates is as large as it is told."
            )


def _start(found: Sequence[Point]) -> Iterator[str]:
    starts = {one.serving.start_up_s for point in found for one in point if one.serving and one.name == VLLM}
    if starts:
        yield (
            f"vLLM took {q.seconds(statistics.median(starts))} to start, which is in none of these rates; Transformers "
            "and our loop run in the process that loaded the weights."
        )


def _dtypes(found: Sequence[Point]) -> Iterator[str]:
    for one in (one for point in found if point.workload == DTYPES for one in point):
        agreement = one.throughput.agreement
        if agreement.correlation is not None and agreement.kl is not None:
            judged = "its speed is not reported" if one.serving is None else "its speed stands in the table"
            yield (
                f"{one.title}: log-probabilities correlate {q.decimal(agreement.correlation, 3)} with the model's, "
                f"{q.decimal(agreement.kl, 3)} nats apart, the same greedy token at {q.share(agreement.tokens_equal)} "
                f"of {q.plural(agreement.n_steps, 'step')}; {judged}."
            )


def _prefix(found: Sequence[Point]) -> Iterator[str]:
    for point in found:
        caching, plain = point.of(PREFIX), point.of(VLLM)
        if caching and plain and caching.serving and plain.serving:
            yield _saved(point, caching.serving, plain.serving)


def _saved(point: Point, own: Serving, other: Serving) -> str:
    found = f"{q.count(own.n_prefix_hits)} of {q.plural(own.n_prefix_tokens, 'prompt token')}"
    share = own.n_prefix_hits / own.n_prefix_tokens if own.n_prefix_tokens else None
    return (
        f"Prefix caching, {point.name}: {found} ({q.share(share)}) were found instead of computed; half of the first "
        f"tokens were there after {q.seconds(own.ttft_s_p50)} instead of {q.seconds(other.ttft_s_p50)}, nine of ten "
        f"after {q.seconds(own.ttft_s_p90)} instead of {q.seconds(other.ttft_s_p90)}."
    )
