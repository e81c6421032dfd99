"""The quantities that claims are about: a closed set, each read from one fact or from a pair of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.findings import quantities as q
from pipeline.findings.means import (
    STRICTER,
)
from pipeline.record import Interval
from pipeline.report.claims import between, measured
from pipeline.report.claims.facts import GIB, Fact
from pipeline.report.claims.measured import Measured

AWARE = "query_aware"
BELOW, ABOVE = "below", "above"


@dataclass(frozen=True)
class Quantity:
    """`of` takes one fact, or two where it is `paired`; None where they do not have it. `number` writes one value.

    `better` is the side of a claim on which a value is better than claimed; empty where it depends on the claim.
    """

    title: str
    of: Callable[..., Measured | None]
    number: Callable[[float], str]
    better: str = ""
    paired: bool = False

    def write(self, value: Interval) -> str:
        """What was counted, or seen once, has no interval."""
        if value.n in (0, 1) or not math.isfinite(value.estimate):
            return self.number(value.estimate)
        low, high = (
            self.number(end).removesuffix(q.TIMES).removesuffix(f"{q.GLUE}%") for end in (value.low, value.high)
        )
        return f"{self.number(value.estimate)} [{low},{q.GLUE}{high}]"


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
    "decode_ratio": Quantity("decode step over the reference's", measured.decode_ratio, q.ratio, BELOW),
    "first_token_ratio": Quantity("first token over the reference's", measured.first_token_ratio, q.ratio, BELOW),
    "kv_share": Quantity("share of the reference's KV bytes", measured.kv_share, _share, BELOW),
    "peak_share": Quantity("share of the reference's peak memory", measured.peak_share, _share, BELOW),
    "weight_share": Quantity("share of the plain weights' bytes", measured.weight_share, _share, BELOW),
    "bandwidth_share": Quantity("share of the measured copy bandwidth", measured.bandwidth_share, _share, ABOVE),
    "memory_over_compute": Quantity(
        "decode step, memory floor over compute floor", measured.memory_over_compute, q.ratio
    ),
    "compute_over_memory": Quantity("prompt, compute floor over memory floor", measured.compute_over_memory, q.ratio),
    "recall_difference": Quantity(
        "recall difference, query-agnostic", _with(measured.recall, STRICTER), _difference, ABOVE
    ),
    "recall_difference_aware": Quantity(
        "recall difference, query-aware", _with(measured.recall, AWARE), _difference, ABOVE
    ),
    "text_loss": Quantity("loss on text less the reference's, nats", measured.text, _difference, BELOW),
    "speedup_one_by_one": Quantity(
        "tokens per second over one by one", _with(measured.speedup, "speedup_one_by_one"), q.ratio, ABOVE
    ),
    "speedup_batch": Quantity(
        "tokens per second over one batch", _with(measured.speedup, "speedup_batch"), q.ratio, ABOVE
    ),
    "engine_kv_share": Quantity(
        "share of one batch's KV bytes, at most in use", measured.engine_kv_share, _share, BELOW
    ),
    "recall_between": Quantity(
        "recall less the other's, query-agnostic", _with(between.recall, STRICTER), _difference, ABOVE, paired=True
    ),
    "recall_between_aware": Quantity(
        "recall less the other's, query-aware", _with(between.recall, AWARE), _difference, ABOVE, paired=True
    ),
    "text_between": Quantity("loss on text less the other's, nats", between.text, _difference, BELOW, paired=True),
    "decode_between": Quantity("decode step over the other's", between.decode, q.ratio, paired=True),
    "variation_between": Quantity(
        "variation of decode steps over the other's", between.variation, q.ratio, BELOW, paired=True
    ),
    "kv_between": Quantity("KV bytes over the other's", between.kv, q.ratio, BELOW, paired=True),
    "kv_gib": Quantity("KV of one sequence", measured.value("kv_gib"), _gib, BELOW),
    "largest_batch": Quantity("largest batch", measured.value("largest_batch"), q.count, ABOVE),
    "utilisation": Quantity("tokens held of slots allocated", measured.value("utilisation"), _share, ABOVE),
    "sequences_ratio": Quantity("sequences at once over contiguous", measured.value("sequences_ratio"), q.ratio, ABOVE),
    "gate": Quantity("difference, accuracy or nats", measured.value("gate"), _difference),
}
