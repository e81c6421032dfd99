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


def test_holm_is_bonferroni_for_the_smallest_and_never_falls() -> None:
    assert intervals.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
    assert intervals.holm([]) == []


def test_sign_flips_find_what_is_there_about_as_rarely_as_promised_where_nothing_is() -> None:
    rng = np.random.default_rng(0)
    nothing = intervals.sign_flip_p_values(rng.normal(0.0, 1.0, (400, 30)).tolist(), 1000, seed=0)
    assert 0.02 <= np.mean([p < 0.05 for p in nothing]) <= 0.09
    (there, none) = intervals.sign_flip_p_values([[0.5, 0.4, 0.6] * 10, [0.0] * 30], 1000, seed=0)
    assert (there, none) == (pytest.approx(1 / 1001), 1.0)
