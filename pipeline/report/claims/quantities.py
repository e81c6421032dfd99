"""The quantities that claims are about: a closed set, each read from one fact or from a pair of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, held_share
from pipeline.findings.means import (
    N_RESAMPLES,
    SEED,
    STRICTER,
    accuracies,
    mean_difference,
    tasks_of,
    text_loss,
    variation,
)
from pipeline.intervals import bootstrap
from pipeline.record import Cost, Interval
from pipeline.report.claims.facts import GIB, Fact, exact
from pipeline.report.ranking import memory
from pipeline.report.study.repeated import peak_share
from pipeline.report.system.engines import Served, used_share
from pipeline.report.system.weights import weight_bytes

AWARE = "query_aware"


@dataclass(frozen=True)
class Measured:
    """A value, and of a timed one how far the reference lies from itself."""

    value: Interval
    noise: Interval | None = None

    @property
    def judged(self) -> Interval:
        """The interval that is compared with a claim: of a ratio it is stretched by the noise on either side of 1."""
        if self.noise is None:
            return self.value
        low, high = self.value.low / max(self.noise.high, 1.0), self.value.high / min(self.noise.low, 1.0)
        return Interval(estimate=self.value.estimate, low=low, high=high, n=self.value.n)


@dataclass(frozen=True)
class Quantity:
    """`of` takes one fact, or two where it is `paired`; None where they do not have it. `number` writes one value."""

    title: str
    of: Callable[..., Measured | None]
    number: Callable[[float], str]
    paired: bool = False

    def write(self, value: Interval) -> str:
        """What was counted, or seen once, has no interval."""
        if value.n in (0, 1) or not math.isfinite(value.estimate):
            return self.number(value.estimate)
        low, high = (
            self.number(end).removesuffix(q.TIMES).removesuffix(f"{q.GLUE}%") for end in (value.low, value.high)
        )
        return f"{self.number(value.estimate)} [{low},{q.GLUE}{high}]"


def _timed(fact: Fact, of: Callable[[Cost], Measured | None]) -> Measured | None:
    return of(fact.row.record.cost) if fact.row and fact.row.record.cost else None


def _decode_ratio(fact: Fact) -> Measured | None:
    return _timed(fact, lambda cost: Measured(cost.tpot_ratio, cost.aa_tpot_ratio))


def _first_token_ratio(fact: Fact) -> Measured | None:
    return _timed(fact, lambda cost: Measured(cost.ttft_ratio, cost.aa_ttft_ratio))


def _kv_share(fact: Fact) -> Measured | None:
    """After decoding where cost was measured, else after the items of quality."""
    if fact.row is None:
        return None
    if value := memory(fact.row):
        return Measured(value)
    quality = fact.row.record.quality
    share = held_share(quality.tasks) if quality else None
    return None if share is None else Measured(exact(share))


def _peak_share(fact: Fact) -> Measured | None:
    return _timed(fact, lambda cost: Measured(exact(peak_share(cost))))


def _weight_share(fact: Fact) -> Measured | None:
    def of(cost: Cost) -> Measured | None:
        full = weight_bytes(cost.full)
        return Measured(exact(weight_bytes(cost.technique) / full)) if full else None

    return _timed(fact, of)


def _bandwidth_share(fact: Fact) -> Measured | None:
    """Of the measured copy bandwidth, over the trials of decoding."""

    def of(cost: Cost) -> Measured | None:
        arm = cost.technique
        shares = [cost.decode_bandwidth_share * arm.tpot_s_p50 / seconds for seconds in arm.tpot_s]
        return Measured(bootstrap(shares, N_RESAMPLES, SEED)) if shares else None

    return _timed(fact, of)


def _memory_over_compute(fact: Fact) -> Measured | None:
    """Of a decode step: time to read its bytes over time to compute it, both at the measured ceilings.

    What one token computes is taken as its part of the prompt's.
    """
    predicted = fact.row.record.predicted if fact.row else None
    if fact.row is None or predicted is None:
        return None
    return Measured(exact(predicted.decode_floor_s / (predicted.prefill_floor_s / fact.row.cell.seq_len)))


def _compute_over_memory(fact: Fact) -> Measured | None:
    """Of a prompt: time to compute it over time to read the weights once, both at the measured ceilings."""
    predicted = fact.row.record.predicted if fact.row else None
    if predicted is None:
        return None
    seconds_per_byte = predicted.decode_floor_s / predicted.decode_bytes_per_step
    return Measured(exact(predicted.prefill_floor_s / (predicted.weight_bytes * seconds_per_byte)))


def _recall(fact: Fact, protocol: str) -> Measured | None:
    row = _trained(fact)
    mean = mean_difference(tasks_of(row, protocol)) if row else None
    return Measured(verdicts.rounded(mean)) if mean else None


def _text(fact: Fact) -> Measured | None:
    value = text_loss(fact.row) if fact.row else None
    return Measured(value) if value else None


def _trained(fact: Fact) -> Row | None:
    return fact.row if fact.row and fact.row.in_trained_length else None


def _speedup(fact: Fact, name: str) -> Measured | None:
    found = fact.row.record.throughput if fact.row else None
    value: Interval | None = getattr(found, name, None)
    return Measured(value, found.aa_batch) if found and value else None


def _engine_kv_share(fact: Fact) -> Measured | None:
    found = fact.row.record.throughput if fact.row else None
    return Measured(exact(used_share(Served(fact.row, found)))) if fact.row and found else None


def _recall_between(one: Fact, other: Fact, protocol: str) -> Measured | None:
    """Accuracy of one less that of the other, item by item, over the tasks that count for both."""
    rows = [_trained(one), _trained(other)]
    own, theirs = ({task.task: task for task in tasks_of(row, protocol)} if row else {} for row in rows)
    shared = [name for name in own if name in theirs]
    return _paired(accuracies([own[name] for name in shared]), accuracies([theirs[name] for name in shared]))


def _text_between(one: Fact, other: Fact) -> Measured | None:
    """Nats of one less those of the other, stream by stream."""
    rows = [_trained(one), _trained(other)]
    texts = [row.record.quality.text if row and row.record.quality else None for row in rows]
    own, theirs = (text.items.nll if text else [] for text in texts)
    return _paired(own, theirs)


def _paired(own: Sequence[float], theirs: Sequence[float]) -> Measured | None:
    """None where there is nothing, or not the same number of units, so that they cannot be the same."""
    if not own or len(own) != len(theirs):
        return None
    differences = [a - b for a, b in zip(own, theirs, strict=True)]
    return Measured(verdicts.rounded(bootstrap(differences, N_RESAMPLES, SEED)))


def _decode_between(one: Fact, other: Fact) -> Measured | None:
    """Both were timed beside the same reference; the noise is the larger of the two."""
    own, theirs = _decode_ratio(one), _decode_ratio(other)
    if own is None or theirs is None or own.noise is None or theirs.noise is None:
        return None
    noises = (own.noise, theirs.noise)
    noise = own.noise.model_copy(update={"low": min(n.low for n in noises), "high": max(n.high for n in noises)})
    return Measured(_quotient(own.value, theirs.value), noise)


def _variation_between(one: Fact, other: Fact) -> Measured | None:
    """Standard deviation over mean of the decode steps of one, over that of the other."""

    def of(fact: Fact) -> Interval | None:
        return variation(fact.row.record.cost.technique.step_s) if fact.row and fact.row.record.cost else None

    own, theirs = of(one), of(other)
    return Measured(_quotient(own, theirs)) if own and theirs else None


def _kv_between(one: Fact, other: Fact) -> Measured | None:
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


def _value(name: str) -> Callable[[Fact], Measured | None]:
    """What a file holds under this name."""

    def of(fact: Fact) -> Measured | None:
        value = fact.values.get(name)
        return Measured(value) if value else None

    return of


def _with(of: Callable[..., Measured | None], name: str) -> Callable[..., Measured | None]:
    def named(*facts: Fact) -> Measured | None:
        return of(*facts, name)

    return named


def _gib(value: float) -> str:
    return q.data(value * GIB)


def _share(value: float) -> str:
    return q.share(max(value, 0.0))  # a tolerance may reach below what a share can be


def _difference(value: float) -> str:
    return q.signed(value, 3) if value else "0"


QUANTITIES: dict[str, Quantity] = {
    "decode_ratio": Quantity("decode step over the reference's", _decode_ratio, q.ratio),
    "first_token_ratio": Quantity("first token over the reference's", _first_token_ratio, q.ratio),
    "kv_share": Quantity("share of the reference's KV bytes", _kv_share, _share),
    "peak_share": Quantity("share of the reference's peak memory", _peak_share, _share),
    "weight_share": Quantity("share of the plain weights' bytes", _weight_share, _share),
    "bandwidth_share": Quantity("share of the measured copy bandwidth", _bandwidth_share, _share),
    "memory_over_compute": Quantity("decode step, memory floor over compute floor", _memory_over_compute, q.ratio),
    "compute_over_memory": Quantity("prompt, compute floor over memory floor", _compute_over_memory, q.ratio),
    "recall_difference": Quantity("recall difference, query-agnostic", _with(_recall, STRICTER), _difference),
    "recall_difference_aware": Quantity("recall difference, query-aware", _with(_recall, AWARE), _difference),
    "text_loss": Quantity("loss on text less the reference's, nats", _text, _difference),
    "speedup_one_by_one": Quantity("tokens per second over one by one", _with(_speedup, "speedup_one_by_one"), q.ratio),
    "speedup_batch": Quantity("tokens per second over one batch", _with(_speedup, "speedup_batch"), q.ratio),
    "engine_kv_share": Quantity("share of one batch's KV bytes, at most in use", _engine_kv_share, _share),
    "recall_between": Quantity(
        "recall less the other's, query-agnostic", _with(_recall_between, STRICTER), _difference, paired=True
    ),
    "recall_between_aware": Quantity(
        "recall less the other's, query-aware", _with(_recall_between, AWARE), _difference, paired=True
    ),
    "text_between": Quantity("loss on text less the other's, nats", _text_between, _difference, paired=True),
    "decode_between": Quantity("decode step over the other's", _decode_between, q.ratio, paired=True),
    "variation_between": Quantity(
        "variation of decode steps over the other's", _variation_between, q.ratio, paired=True
    ),
    "kv_between": Quantity("KV bytes over the other's", _kv_between, q.ratio, paired=True),
    "kv_gib": Quantity("KV of one sequence", _value("kv_gib"), _gib),
    "largest_batch": Quantity("largest batch", _value("largest_batch"), q.count),
    "utilisation": Quantity("tokens held of slots allocated", _value("utilisation"), _share),
    "sequences_ratio": Quantity("sequences at once over contiguous", _value("sequences_ratio"), q.ratio),
    "gate": Quantity("difference, accuracy or nats", _value("gate"), _difference),
}
