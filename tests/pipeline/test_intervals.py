import math

import numpy as np
import pytest

from pipeline import intervals


@pytest.mark.parametrize("n", [3, 5, 8, 40])
def test_intervals_cover_the_truth_about_as_often_as_they_promise(n: int) -> None:
    rng = np.random.default_rng(0)
    found = [intervals.bootstrap(rng.normal(1.0, 0.3, n).tolist(), 500, seed) for seed in range(300)]
    share = np.mean([interval.low <= 1.0 <= interval.high for interval in found])
    assert 0.90 <= share <= 0.995


def test_interval_covers_a_known_ratio_of_noisy_times() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        load = np.exp(rng.normal(0, 0.5, 8))  # whatever else the machine does, both arms of a trial share it
        full, technique = load * np.exp(rng.normal(0, 0.05, 8)), 0.4 * load * np.exp(rng.normal(0, 0.05, 8))
        interval = intervals.ratio(technique, full, 500, seed)
        covered += interval.low <= 0.4 <= interval.high
        assert interval.high < 1.0
    assert covered >= 88


def test_ratio_of_equal_ratios_is_exact() -> None:
    interval = intervals.ratio([2.0, 4.0, 8.0], [4.0, 8.0, 16.0], 200, seed=0)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_sample_bounds_nothing() -> None:
    interval = intervals.ratio([1.0], [2.0], 200, seed=0)
    assert (interval.estimate, interval.low, interval.high, interval.n) == (pytest.approx(0.5), 0.0, math.inf, 1)


def test_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    samples = np.random.default_rng(0).normal(size=20).tolist()
    assert intervals.bootstrap(samples, 200, seed=3) == intervals.bootstrap(samples, 200, seed=3)
    assert intervals.bootstrap(samples, 200, seed=3) != intervals.bootstrap(samples, 200, seed=4)


def test_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"samples=\[\]"):
        intervals.bootstrap([], 200, seed=0)
