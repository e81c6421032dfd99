"""Intervals of shares that are counted, hits among n: a bootstrap of all hits would claim to be sure."""

from __future__ import annotations

import math

from pipeline.intervals import Z_975
from pipeline.record import Interval


def share(n_hits: float, n: int) -> Interval:
    """95 % interval of Wilson (1927), which is never empty, however many hit."""
    p, z2 = n_hits / n, Z_975**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_975 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(estimate=p, low=max(0.0, min(centre - half, p)), high=min(1.0, max(centre + half, p)), n=n)


def difference(one: Interval, other: Interval) -> Interval:
    """one - other, of two independent shares: Newcombe's interval (1998, method 10), from those of the two.

    Where the same items were asked of both it is rather too wide.
    """
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    estimate = one.estimate - other.estimate
    return Interval(estimate=estimate, low=estimate - below, high=estimate + above, n=min(one.n, other.n))
