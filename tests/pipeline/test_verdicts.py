"""From an interval to a word."""

from __future__ import annotations

import pytest

from pipeline.findings import verdicts
from pipeline.record import Interval, Items, TaskQuality


def task(n_lost: int, n_won: int, n_items: int = 32) -> TaskQuality:
    """As a bootstrap judges few items that differ: its interval leaves 0 out as soon as all of them are lost."""
    correct_full = [1.0] * n_lost + [0.0] * n_won + [1.0] * (n_items - n_lost - n_won)
    correct = [0.0] * n_lost + [1.0] * n_won + [1.0] * (n_items - n_lost - n_won)
    lost = (n_won - n_lost) / n_items
    return TaskQuality.model_construct(
        task="single_needle",
        protocol="query_agnostic",
        accuracy_full=0.9,
        accuracy_difference=Interval(estimate=lost, low=lost - 0.01, high=lost + 0.01, n=n_items),
        items=Items.model_construct(correct=correct, correct_full=correct_full),
    )


@pytest.mark.parametrize(
    ("n_lost", "n_won", "word"),
    [
        (4, 0, verdicts.NO_DIFFERENCE),  # p = 0.125
        (5, 0, verdicts.NO_DIFFERENCE),  # p = 0.0625
        (6, 0, verdicts.WORSE),  # p = 0.031
        (0, 6, verdicts.BETTER),
        (9, 3, verdicts.NO_DIFFERENCE),  # p = 0.146
        (20, 3, verdicts.WORSE),
    ],
)
def test_few_items_that_differ_are_judged_by_their_signs(n_lost: int, n_won: int, word: str) -> None:
    assert verdicts.recall(task(n_lost, n_won)) == word
