"""How techniques are ordered by one quantity, and how far two orders agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.record import Interval


def ranks(values: Sequence[Interval]) -> list[int]:
    """Smallest first; where nobody lies wholly below, several are first."""
    return [1 + sum(other.high < value.low for other in values) for value in values]


def tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's rank correlation, corrected for ties (tau-b); None where one side orders nothing.

    M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).
    """
    a, b = (np.sign(np.subtract.outer(values, values)) for values in (first, second))
    untied = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / untied if untied else None
