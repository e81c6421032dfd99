"""What one fact has of a quantity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, held_share
from pipeline.findings.means import (
    N_RESAMPLES,
    SEED,
    mean_difference,
    tasks_of,
    text_loss,
)
from pipeline.intervals import bootstrap
from pipeline.record import Cost, Interval
from pipeline.report.claims.facts import Fact, exact
from pipeline.report.ranking import memory
from pipeline.report.study import repeated as study
from pipeline.report.system.engines import Served, arrives_over_s, used_share
from pipeline.report.system.weights import weight_bytes


@dataclass(frozen=True)
class Measured:
    """A value, and how far the reference lies from itself where that was timed as an arm of its own."""

    value: Interval
    noise: Interval | None = None

    @property
    def judged(self) -> Interval:
        """The interval that is compared with a claim: of a ratio it is stretched by the noise on either side of 1."""
        if self.noise is None:
            return self.value
        low, high = self.value.low / max(self.noise.high, 1.0), self.value.high / min(self.noise.low, 1.0)
        return Interval(estimate=self.value.estimate, low=low, high=high, n=self.value.n)


def _timed(fact: Fact, of: Callable[[Cost], Measured | None]) -> Measured | None:
    return of(fact.row.record.cost) if fact.row and fact.row.record.cost else None


def decode_ratio(fact: Fact) -> Measured | None:
    return _timed(fact, lambda cost: Measured(cost.tpot_ratio, cost.aa_tpot_ratio))


def first_token_ratio(fact: Fact) -> Measured | None:
    return _timed(fact, lambda cost: Measured(cost.ttft_ratio, cost.aa_ttft_ratio))


def kv_share(fact: Fact) -> Measured | None:
    """After decoding where cost was measured, else after the items of quality."""
    if fact.row is None:
        return None
    if value := memory(fact.row):
        return Measured(value)
    quality = fact.row.record.quality
    share = held_share(quality.tasks) if quality else None
    return None if share is None else Measured(exact(share))


def peak_share(fact: Fact) -> Measured | None:
    return _timed(fact, lambda cost: Measured(exact(study.peak_share(cost))))


def weight_share(fact: Fact) -> Measured | None:
    def of(cost: Cost) -> Measured | None:
        full = weight_bytes(cost.full)
        return Measured(exact(weight_bytes(cost.technique) / full)) if full else None

    return _timed(fact, of)


def bandwidth_share(fact: Fact) -> Measured | None:
    """Of the measured copy bandwidth, over the trials of decoding."""

    def of(cost: Cost) -> Measured | None:
        arm = cost.technique
        shares = [cost.decode_bandwidth_share * arm.tpot_s_p50 / seconds for seconds in arm.tpot_s]
        return Measured(bootstrap(shares, N_RESAMPLES, SEED)) if shares else None

    return _timed(fact, of)


def memory_over_compute(fact: Fact) -> Measured | None:
    """Of a decode step: time to read its bytes over time to compute it, both at the measured ceilings.

    What one token computes is taken as its part of the prompt's.
    """
    predicted = fact.row.record.predicted if fact.row else None
    if fact.row is None or predicted is None:
        return None
    return Measured(exact(predicted.decode_floor_s / (predicted.prefill_floor_s / fact.row.cell.seq_len)))


def compute_over_memory(fact: Fact) -> Measured | None:
    """Of a prompt: time to compute it over time to read the weights once, both at the measured ceilings."""
    predicted = fact.row.record.predicted if fact.row else None
    if predicted is None:
        return None
    seconds_per_byte = predicted.decode_floor_s / predicted.decode_bytes_per_step
    return Measured(exact(predicted.prefill_floor_s / (predicted.weight_bytes * seconds_per_byte)))


def recall(fact: Fact, protocol: str) -> Measured | None:
    row = trained(fact)
    mean = mean_difference(tasks_of(row, protocol)) if row else None
    return Measured(verdicts.rounded(mean)) if mean else None


def text(fact: Fact) -> Measured | None:
    value = text_loss(fact.row) if fact.row else None
    return Measured(value) if value else None


def trained(fact: Fact) -> Row | None:
    return fact.row if fact.row and fact.row.in_trained_length else None


def speedup(fact: Fact, name: str) -> Measured | None:
    """None of requests that arrive at a rate of ours. Its interval is over the trials of both engines."""
    found = fact.row.record.throughput if fact.row else None
    value: Interval | None = getattr(found, name, None)
    return Measured(value) if found and value and not arrives_over_s(found) else None


def engine_kv_share(fact: Fact) -> Measured | None:
    found = fact.row.record.throughput if fact.row else None
    return Measured(exact(used_share(Served(fact.row, found)))) if fact.row and found else None


def value(name: str) -> Callable[[Fact], Measured | None]:
    """What a file holds under this name."""

    def of(fact: Fact) -> Measured | None:
        value = fact.values.get(name)
        return Measured(value) if value else None

    return of
