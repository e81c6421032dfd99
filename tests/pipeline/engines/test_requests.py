from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from pipeline.engines import requests
from tests.pipeline.report.factory import cell

ASKED = cell("full", 64, batch=200, n_new_tokens=48)


def test_the_same_seed_asks_the_same_and_another_seed_something_else() -> None:
    again, other = ASKED.model_copy(), ASKED.model_copy(update={"seed": 1})
    for draw in (requests.equal, lambda *given: requests.log_normal(*given, sigma=0.7, rate_per_s=2.0)):
        assert draw(ASKED, 300, None) == draw(again, 300, None) != draw(other, 300, None)


def test_log_normal_lengths_lie_around_the_median_and_never_beyond_the_positions() -> None:
    made = requests.log_normal(ASKED, 300, 160, sigma=0.7, rate_per_s=2.0)
    lengths = sorted(len(one.prompt) for one in made)
    assert len(made) == 200 and 50 < lengths[100] < 80 and lengths[0] < 30 and lengths[-1] > 100
    assert max(len(one.prompt) + one.n_new_tokens for one in made) <= 160
    assert min(one.n_new_tokens for one in made) >= requests.SHORTEST


def test_arrivals_start_at_once_and_come_at_the_rate_with_exponential_gaps() -> None:
    arrivals = [one.arrival_s for one in requests.log_normal(ASKED, 300, 160, sigma=0.7, rate_per_s=2.0)]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert arrivals[0] == 0 and min(gaps) > 0
    assert statistics.fmean(gaps) == pytest.approx(0.5, rel=0.2) and statistics.stdev(gaps) == pytest.approx(
        0.5, rel=0.3
    )
    assert {one.arrival_s for one in requests.equal(ASKED, 300, None)} == {0.0}


def test_prompts_share_their_start_and_nothing_else() -> None:
    made = requests.shared_prefix(ASKED, 300, None, n_shared=48)
    assert {tuple(one.prompt[:48]) for one in made} == {tuple(made[0].prompt[:48])}
    assert len({tuple(one.prompt[48:]) for one in made}) == 200


@pytest.mark.parametrize("n_shared", [0, 64])
def test_a_prefix_leaves_something_to_differ(n_shared: int) -> None:
    with pytest.raises(ValueError, match=rf"n_shared={n_shared}: prompts have 64 tokens; valid: 1 to 63"):
        requests.shared_prefix(ASKED, 300, None, n_shared=n_shared)


def test_what_does_not_fit_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="seq_len=64: with 48 tokens more, the model has only 100 positions; valid: a"):
        requests.equal(ASKED, 300, 100)
