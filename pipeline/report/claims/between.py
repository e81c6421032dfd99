"""What a pair of facts has of a quantity: one against the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.findings import means, verdicts
from pipeline.findings.means import (
    N_RESAMPLES,
    SEED,
    accuracies,
    tasks_of,
)
from pipeline.intervals import bootstrap
from pipeline.record import Interval
from pipeline.report.claims.facts import Fact, exact
from pipeline.report.claims.measured import Measured, decode_ratio, trained


def recall(one: Fact, other: Fact, protocol: str) -> Measured | None:
    """Accuracy of one less that of the other, item by item, over the tasks that count for both."""
    rows = [trained(one), trained(other)]
    own, theirs = ({task.task: task for task in tasks_of(row, protocol)} if row else {} for row in rows)
    shared = [name for name in own if name in theirs]
    return _paired(accuracies([own[name] for name in shared]), accuracies([theirs[name] for name in shared]))


def text(one: Fact, other: Fact) -> Measured | None:
    """Nats of one less those of the other, stream by stream."""
    rows = [trained(one), trained(other)]
    texts = [row.record.quality.text if row and row.record.quality else None for row in rows]
    own, theirs = (text.items.nll if text else [] for text in texts)
    return _paired(own, theirs)


def _paired(own: Sequence[float], theirs: Sequence[float]) -> Measured | None:
    """None where there is nothing, or not the same number of units, so that they cannot be the same."""
    if not own or len(own) != len(theirs):
        return None
    differences = [a - b for a, b in zip(own, theirs, strict=True)]
    return Measured(verdicts.rounded(bootstrap(differences, N_RESAMPLES, SEED)))


def decode(one: Fact, other: Fact) -> Measured | None:
    """Both were timed beside the same reference; the noise is the larger of the two."""
    own, theirs = decode_ratio(one), decode_ratio(other)
    if own is None or theirs is None or own.noise is None or theirs.noise is None:
        return None
    noises = (own.noise, theirs.noise)
    noise = own.noise.model_copy(update={"low": min(n.low for n in noises), "high": max(n.high for n in noises)})
    return Measured(_quotient(own.value, theirs.value), noise)


def variation(one: Fact, other: Fact) -> Measured | None:
    """Standard deviation over mean of the decode steps of one, over that of the other."""

    def of(fact: Fact) -> Interval | None:
        return means.variation(fact.row.record.cost.technique.step_s) if fact.row and fact.row.record.cost else None

    own, theirs = of(one), of(other)
    return Measured(_quotient(own, theirs)) if own and theirs else None


def kv(one: Fact, other: Fact) -> Measured | None:
    """Bytes held by one over bytes held by the other."""
    costs = [fact.row.record.cost if fact.row else None for fact in (one, other)]
    own, theirs = (cost.technique.kv_bytes_held[-1] if cost else 0 for cost in costs)
    return Measured(exact(own / theirs)) if own and theirs else None


def _quotient(one: Interval, other: Interval) -> Interval:
    """Of two positive values that were measured independently: their distances add up squared, on a log scale."""
    ends = [(one.low, one.estimate, one.high), (other.low, other.estimate, other.high)]
    if any(not value > 0 for values in ends for value in values):
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, n=min(one.n, other.n))
    (low, middle, high), (their_low, their_middle, their_high) = ([math.log(v) for v in values] for values in ends)
    estimate = middle - their_middle
    below, above = (
        math.hypot(middle - low, their_high - their_middle),
        math.hypot(high - middle, their_middle - their_low),
    )
    values = {"estimate": estimate, "low": estimate - below, "high": estimate + above}
    return Interval(n=min(one.n, other.n), **{name: math.exp(value) for name, value in values.items()})
