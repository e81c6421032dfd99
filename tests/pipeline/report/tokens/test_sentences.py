from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.findings import evidence, verdicts
from pipeline.record import Interval, Record
from pipeline.report import reading
from pipeline.report import sentences as shared
from pipeline.report.tokens import sentences, tables
from tests.pipeline.report import factory


def rows_of(records: list[Record], folder: Path) -> list[evidence.Row]:
    return evidence.load(factory.store(records, folder))


def assessment(records: list[Record], folder: Path) -> str:
    return " ".join(sentences.assessment(rows_of(records, folder)))


@pytest.mark.parametrize(
    ("ratio", "half_width", "verdict"),
    [
        (0.45, 0.02, verdicts.FASTER),
        (3.00, 0.02, verdicts.SLOWER),
        (0.95, 0.10, verdicts.NO_DIFFERENCE),  # its interval holds 1
        (0.97, 0.012, verdicts.NO_DIFFERENCE),  # excludes 1, but reaches the full cache's own noise
    ],
)
def test_the_word_for_speed_follows_the_interval(tmp_path: Path, ratio: float, half_width: float, verdict: str) -> None:
    records = [factory.timed("sliding_window", n, ratio, half_width) for n in (2048, 4096)]
    assert f"Decode at batch 1: {verdict} at 2,048 and 4,096 tokens." in assessment(records, tmp_path)


def test_noise_that_misses_1_still_covers_what_lies_between() -> None:
    noise = factory.interval(1.06, 0.02)
    assert verdicts.speed(factory.interval(1.02, 0.005), noise) == verdicts.NO_DIFFERENCE
    assert verdicts.speed(factory.interval(1.20, 0.005), noise) == verdicts.SLOWER


SURE = {0.979: verdicts.FASTER, 0.981: verdicts.NO_DIFFERENCE, 1.019: verdicts.NO_DIFFERENCE, 1.021: verdicts.SLOWER}


@pytest.mark.parametrize(("estimate", "verdict"), SURE.items())
def test_a_sure_difference_of_less_than_what_matters_is_none(estimate: float, verdict: str) -> None:
    assert verdicts.speed(factory.interval(estimate, 0.001), factory.interval(1.0, 0.001)) == verdict


def test_what_could_be_much_faster_and_much_slower_is_undecided() -> None:
    two_trials = Interval(estimate=0.24, low=0.079, high=0.71, n=2)
    assert verdicts.speed(two_trials, Interval(estimate=0.9, low=0.3, high=2.7, n=2)) == verdicts.UNDECIDED
    assert verdicts.speed(two_trials, factory.interval(1.0, 0.1)) == verdicts.FASTER
    assert verdicts.speed(factory.interval(1.0, 0.4), factory.interval(1.0, 0.1)) == verdicts.UNDECIDED
    assert verdicts.speed(factory.interval(1.0, 0.2), factory.interval(1.0, 0.1)) == verdicts.NO_DIFFERENCE


def test_an_undecided_step_has_its_place_in_a_sentence(tmp_path: Path) -> None:
    records = [factory.timed("tova", 512, 1.05, 0.5), factory.timed("h2o", 512, 0.5), factory.timed("snapkv", 512, 1.0)]
    rows = rows_of(records, tmp_path)
    said = sentences.headlines(rows, evidence.labels(rows))[0]
    assert "faster: `h2o` (0.50×); no difference found: `snapkv` (1.00×); undecided: `tova` (1.05×)." in said


def test_every_word_for_speed_is_explained() -> None:
    text = " ".join(reading.how_to_read())
    words = (verdicts.FASTER, verdicts.SLOWER, verdicts.NO_DIFFERENCE, verdicts.UNDECIDED, verdicts.ONE_SAMPLE)
    assert [word for word in words if word not in text] == []


def test_an_undefined_ratio_is_called_undefined() -> None:
    undefined = factory.interval(float("nan"), 0.0)
    assert verdicts.speed(undefined, factory.interval(1.0, 0.02)) == verdicts.UNDEFINED
    assert verdicts.accuracy(undefined) == verdicts.UNDEFINED


def test_one_sample_is_never_called_no_difference() -> None:
    single, several = Interval(estimate=1.0, low=0.0, high=float("inf"), n=1), factory.interval(1.0, 0.02)
    assert verdicts.speed(single, single) == verdicts.speed(several, single) == verdicts.ONE_SAMPLE
    assert verdicts.accuracy(single) == verdicts.loss(single) == verdicts.ONE_SAMPLE
    assert verdicts.stability(single, several, several) == verdicts.ONE_SAMPLE


def test_rounding_in_the_arithmetic_is_not_a_loss() -> None:
    assert verdicts.loss(factory.interval(3e-7, 1e-8)) == verdicts.NO_DIFFERENCE
    assert verdicts.loss(factory.interval(0.003, 0.001)) == verdicts.WORSE


def test_the_sentence_holds_the_records_ratio_interval_and_share(tmp_path: Path) -> None:
    text = assessment([factory.timed("sliding_window", 4096, 0.45)], tmp_path).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "At 4,096 tokens and batch 1, a decode step took 0.45× [0.44, 0.46] of the full cache's (faster), "
        "the first token 1.01× [0.98, 1.04] (no difference found), and the cache held 24.8 % of its bytes."
    ) in text


def test_lengths_are_listed_under_their_own_verdict(tmp_path: Path) -> None:
    records = [factory.timed("sliding_window", n, r) for n, r in ((512, 1.0), (1024, 0.7), (2048, 0.5))]
    text = assessment(records, tmp_path)
    assert "Decode at batch 1: no difference found at 512 tokens; faster at 1,024 and 2,048 tokens." in text


def test_a_technique_made_slow_is_called_slow_and_not_fastest(tmp_path: Path) -> None:
    def headline(ratio: float, folder: str) -> str:
        records = [factory.timed("full", 512, 1.0), factory.timed("sliding_window", 512, ratio)]
        rows = rows_of(records, tmp_path / folder)
        return sentences.headlines(rows, evidence.labels(rows))[0]

    assert "faster: `sliding_window` (0.50×)" in headline(0.5, "before")
    assert "Fastest was `sliding_window`" in headline(0.5, "before")
    assert "slower: `sliding_window` (2.00×)" in headline(2.0, "after")
    assert "Fastest was `full`" in headline(2.0, "after")


def test_overlapping_leaders_are_named_together(tmp_path: Path) -> None:
    ratios = {"full": 1.0, "sliding_window": 0.50, "attention_sink": 0.505}
    rows = rows_of([factory.timed(name, 512, ratio) for name, ratio in ratios.items()], tmp_path)
    (headline,) = sentences.headlines(rows, evidence.labels(rows))
    assert "Fastest were, with overlapping intervals, `sliding_window` and `attention_sink`." in headline


def test_quality_loss_is_called_worse_and_the_largest_is_named(tmp_path: Path) -> None:
    text = assessment([factory.judged("sliding_window", 512, loss=0.8)], tmp_path)
    assert "Recall against the full cache, in 12 measurements: worse in 12." in text
    assert "The largest loss was in single needle (query-agnostic) at 512 tokens: 0.17 against 0.97." in text
    assert "Held-out text against the full cache: worse at 512 tokens (loss +0.160 nats)." in text


def test_equal_quality_is_no_difference_found(tmp_path: Path) -> None:
    text = assessment([factory.judged("full", 512, loss=0.0)], tmp_path)
    assert "Recall was that of the full cache to 3 decimals in all of 12 measurements." in text
    assert "largest loss" not in text


def test_a_quality_interval_around_zero_is_no_difference_found() -> None:
    assert verdicts.accuracy(factory.interval(-0.02, 0.05)) == verdicts.NO_DIFFERENCE
    assert verdicts.accuracy(factory.interval(-0.10, 0.05)) == verdicts.WORSE
    assert verdicts.accuracy(factory.interval(+0.10, 0.05)) == verdicts.BETTER
    assert verdicts.loss(factory.interval(+0.10, 0.05)) == verdicts.WORSE
    assert verdicts.loss(factory.interval(-0.10, 0.05)) == verdicts.BETTER


def test_only_contexts_beyond_the_trained_length_are_called_extrapolation(tmp_path: Path) -> None:
    records = [factory.judged("sliding_window", n, 0.5) for n in (1024, 2048, 4096)]
    notes = [s for s in sentences.assessment(rows_of(records, tmp_path)) if "extrapolation" in s]
    assert notes == [
        "The context of 2,048 and 4,096 tokens is beyond the 1,024 tokens that `tiny` was trained on: its speed and "
        "memory count, what it says there is extrapolation."
    ]


def test_random_weights_have_no_trained_length(tmp_path: Path) -> None:
    assert "extrapolation" not in assessment([factory.timed("sliding_window", 8192)], tmp_path)


def test_the_statement_counts_every_record(tmp_path: Path) -> None:
    text = reading.statement(rows_of(factory.realistic(), tmp_path))
    assert text == "Computed from 54 records of 1 machine (7 techniques): 52 measured, 1 failed and 1 skipped."


def test_a_technique_without_any_measurement_says_so(tmp_path: Path) -> None:
    record = factory.make(factory.cell("no_cache"), status="skipped", reason="too slow", remedy="time")
    assert assessment([record], tmp_path) == "There is no measurement here: 0 measured, 0 failed and 1 skipped."


def test_a_changed_technique_says_what_changed_in_its_title(tmp_path: Path) -> None:
    (row,) = rows_of([factory.timed("attention_sink+scorer.n_sinks=8")], tmp_path)
    assert sentences.technique_title(row) == "Attention sink with scorer.n_sinks=8"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("arXiv:2309.17453", "[arXiv:2309.17453](https://arxiv.org/abs/2309.17453)"),
        ("https://example.org/paper", "[example.org/paper](https://example.org/paper)"),
        ("", ""),
    ],
)
def test_papers_become_links(text: str, shown: str) -> None:
    assert shared.paper(text) == shown


def test_a_sentence_and_a_table_round_a_loss_alike(tmp_path: Path) -> None:
    """0.60526 is 0.605 at the decimals of a verdict, and that would be 0.60 at those that are shown."""
    judged = factory.judged("tova")
    assert judged.quality
    task = judged.quality.tasks[-1].model_copy(update={"items": factory.items(190, 75 / 190, 1.0, 1.0)})
    quality = judged.quality.model_copy(update={"tasks": [task]})
    rows = rows_of([judged.model_copy(update={"quality": quality})], tmp_path)
    names = evidence.labels(rows)
    assert "worse: `tova` (−0.61)" in sentences.headlines(rows, names)[0]
    assert "(−0.61)" in tables.summary_quality(rows, names).rows[0][3]
