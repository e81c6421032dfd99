"""From an interval to a word. These rules are the only place where a difference is called one."""

from __future__ import annotations

import math

from pipeline.record import Interval

FASTER, SLOWER = "faster", "slower"
BETTER, WORSE = "better", "worse"
NO_DIFFERENCE = "no difference found"
UNDEFINED = "undefined"


def speed(ratio: Interval, noise: Interval) -> str:
    """A ratio to the full cache counts only outside both 1 and the full cache's ratio to itself."""
    low, high = min(noise.low, 1.0), max(noise.high, 1.0)
    if not _defined(ratio, noise):
        return UNDEFINED
    return FASTER if ratio.high < low else SLOWER if ratio.low > high else NO_DIFFERENCE


def accuracy(difference: Interval) -> str:
    """Technique - full, in accuracy: above 0 is better."""
    return _signed(difference, BETTER, WORSE)


def loss(difference: Interval) -> str:
    """Technique - full, in nats: above 0 is worse."""
    return _signed(difference, WORSE, BETTER)


def _signed(difference: Interval, above: str, below: str) -> str:
    if not _defined(difference):
        return UNDEFINED
    return above if difference.low > 0 else below if difference.high < 0 else NO_DIFFERENCE


def _defined(*intervals: Interval) -> bool:
    return not any(math.isnan(v) for i in intervals for v in (i.estimate, i.low, i.high))
