"""Bootstrap intervals over independent units (trials, items, streams): seeded, so that a record can be re-derived."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.record import Interval

Z_975 = 1.959964


def bootstrap(samples: Sequence[float], n_resamples: int, seed: int) -> Interval:
    """Mean of `samples` and its 95 % interval, stretched so that few samples do not look surer than they are.

    The stretch replaces the normal quantile by Student's and n by n - 1. One sample alone bounds nothing.
    """
    values = np.asarray(samples, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("samples=[]: nothing was measured; valid: at least one value")
    mean = float(values.mean())
    if n == 1:
        return Interval(estimate=mean, low=-math.inf, high=math.inf, n=1)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, n, size=(n_resamples, n))].mean(axis=1)
    stretch = _student_975(n - 1) / Z_975 * math.sqrt(n / (n - 1))
    low, high = (mean + stretch * (bound - mean) for bound in np.percentile(means, [2.5, 97.5]))
    return Interval(estimate=mean, low=min(float(low), mean), high=max(float(high), mean), n=n)


def ratio(numerator: Sequence[float], denominator: Sequence[float], n_resamples: int, seed: int) -> Interval:
    """Geometric mean of the pairwise ratios, by a bootstrap of the log-ratios."""
    logs = np.log(np.asarray(numerator, dtype=np.float64) / np.asarray(denominator, dtype=np.float64))
    log = bootstrap(logs.tolist(), n_resamples, seed)
    return Interval(estimate=math.exp(log.estimate), low=math.exp(log.low), high=math.exp(log.high), n=log.n)


def _student_975(degrees: int) -> float:
    """97.5 % quantile of Student's t; expansion around the normal quantile, within 1 % from 4 degrees on."""
    if degrees < 4:
        return (12.706, 4.303, 3.182)[degrees - 1]
    z = Z_975
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def sign_flip_p_values(differences: Sequence[Sequence[float]], n_resamples: int, seed: int) -> list[float]:
    """Two-sided p-value of each row of paired differences [rows, units], under the hypothesis that signs are chance.

    The same random flips serve all rows. At least 1 / (n_resamples + 1), so that it is never surer than the resamples.
    """
    values = np.asarray(differences, dtype=np.float64)
    flips = np.random.default_rng(seed).choice((-1.0, 1.0), size=(n_resamples, values.shape[1]))
    extreme = np.abs(flips @ values.T) >= np.abs(values.sum(axis=1)) - 1e-9
    return [float(p) for p in (1 + extreme.sum(axis=0)) / (n_resamples + 1)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: below α, the chance of any false rejection among them all is below α."""
    adjusted, worst, n = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(n), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (n - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
