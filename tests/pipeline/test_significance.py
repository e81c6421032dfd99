import pytest

from pipeline.significance import N_FLIPS, holm, p_below_zero


def test_p_is_that_of_the_sign_test_where_all_pairs_differ_by_one():
    """Nine losses and one win: 11 of 1,024 sign patterns are as bad."""
    assert p_below_zero([-1.0] * 9 + [1.0] + [0.0] * 100, seed=0) == pytest.approx(11 / 1024, abs=0.004)


def test_gains_and_ties_are_no_losses():
    assert p_below_zero([0.0] * 50, seed=0) == 1.0
    assert p_below_zero([1.0] * 9 + [-1.0], seed=0) > 0.95


def test_p_is_never_nothing():
    assert p_below_zero([-1.0] * 200, seed=0) == 1 / (1 + N_FLIPS)


def test_holm_multiplies_by_the_hypotheses_that_are_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
