"""Is a paired difference more than chance, and is it still where many are looked at?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.05
N_FLIPS = 10_000


def p_below_zero(differences: Sequence[float], seed: int) -> float:
    """One-sided p of a mean this far below 0 if every pair were as likely the other way round: random sign flips."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]  # pairs that agree say nothing
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(N_FLIPS, len(values)))
    as_low = np.count_nonzero(signs @ values <= values.sum() + 1e-9)
    return float(1 + as_low) / (1 + N_FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of each hypothesis of one family (Holm 1979): below `LEVEL`, it is rejected; the chance that any true
    one is, is at most `LEVEL`.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
