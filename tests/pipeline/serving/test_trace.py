"""A trace is what its parameters say, and its seed decides it."""

from __future__ import annotations

import statistics

import pytest

from pipeline.serving import plan
from tests.pipeline.serving.plans import requests

MANY = ("n_steps=4000", "max_len=100000")


def test_the_seed_decides_the_trace() -> None:
    assert requests("seed=3") == requests("seed=3") != requests("seed=4")


def test_arrivals_are_poisson() -> None:
    counts = [0] * 4000
    for request in requests(*MANY, "trace.arrivals_per_step=2"):
        counts[request.arrival] += 1
    assert statistics.fmean(counts) == pytest.approx(2, rel=0.05)
    assert statistics.variance(counts) == pytest.approx(2, rel=0.1)


def test_lengths_are_log_normal() -> None:
    drawn = requests(*MANY, "trace.prompt={median: 300, sigma: 0.5}", "trace.output={median: 50, sigma: 0}")
    own = sorted(request.n_prompt - request.n_prefix for request in drawn)
    assert statistics.median(own) == pytest.approx(300, rel=0.05)
    assert own[round(0.8413 * len(own))] == pytest.approx(300 * 2.71828**0.5, rel=0.05)  # one sigma above
    assert {request.n_output for request in drawn} == {50}


def test_prompts_begin_alike_as_often_as_asked() -> None:
    drawn = requests(*MANY, "trace.system_prompts={n: 3, n_tokens: 40, share: 0.25}")
    alike = [request for request in drawn if request.prefix is not None]
    assert len(alike) / len(drawn) == pytest.approx(0.25, abs=0.04)
    assert {request.prefix for request in alike} == {0, 1, 2}
    assert {request.n_prefix for request in drawn} == {0, 40}


def test_requests_are_cut_to_the_limit_and_keep_tokens_of_their_own() -> None:
    drawn = requests("max_len=64", "trace.prompt.median=50")
    assert max(request.n_tokens for request in drawn) == 64
    assert min(request.n_output for request in drawn) >= 1
    assert min(request.n_prompt - request.n_prefix for request in drawn) >= 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("block_sizes=[16,0]", "block_sizes=0: not possible; valid: greater than 0"),
        ("gpu_gb=-1", "gpu_gb=-1: not possible; valid: greater than 0"),
        ("trace.prompt.median=0", r"trace\.prompt\.median=0: not possible; valid: greater than 0"),
        ("trace.system_prompts.share=1.5", r"trace\.system_prompts\.share=1\.5: not possible; valid: .*1"),
        ("watermark=1", "watermark=1: not possible; valid: less than 1"),
        ("max_len=41", "max_len=41: system prompts alone have 40 tokens; valid: at least 42"),
    ],
)
def test_what_cannot_be_is_refused(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        requests(override)


def test_a_trace_without_requests_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trace\.arrivals_per_step=1e-09: nothing arrives in 160 steps; valid"):
        requests("trace.arrivals_per_step=1e-9")


def test_the_folder_of_results_is_no_part_of_the_plan() -> None:
    asked, folder = plan.asked(["results_dir=/elsewhere"])
    assert str(folder) == "/elsewhere" and asked == plan.asked([])[0]
