"""The page of engines: every sentence and every line follows the records, and every speed names its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.findings import evidence, verdicts
from pipeline.findings import quantities as q
from pipeline.record import Agreement, Interval, Record, Serving, Throughput
from pipeline.report import drawing
from pipeline.report.system import engine_plots, engine_sentences, engines
from tests.pipeline.report import factory

EXACT = Agreement(n_steps=100, tokens_equal=1.0)
SAME = Interval(estimate=1.0, low=0.95, high=1.05, n=3)
ARRIVING: dict[str, Any] = {"workload": "mixed_lengths", "arrival_s": (0.0, 1.0, 2.5)}


def serving(rate: float, used: int = 1000, **changes: Any) -> Serving:
    values: dict[str, Any] = {
        "wall_s": [100 / rate] * 3, "ttft_s": [0.1] * 3, "tpot_s": [1 / rate] * 3, "tokens_per_s": rate,
        "ttft_s_p50": 0.1, "ttft_s_p90": 0.2, "tpot_s_p50": 1 / rate, "tpot_s_p90": 2 / rate, "start_up_s": 0.0,
        "kv_bytes_allocated": used, "kv_bytes_used": used,
    }  # fmt: skip
    return Serving(**values | changes)


def made(engine: str, rate: float, batch: int = 8, *, strategy: str = "full", workload: str = "throughput",
         agreement: Agreement = EXACT, is_model: bool = True, spread: Interval | None = SAME,
         arrival_s: Sequence[float] = (), trials: int = 3, **changes: Any) -> Record:  # fmt: skip
    """Beside 20 tokens per second one by one and 100 in one batch."""
    of = factory.cell(strategy, 64, level="engine", engine=engine, workload=workload, batch=batch, kv_budget=None)
    throughput = Throughput(
        n_prompt_tokens=[64] * batch, n_new_tokens=[33] * batch, agreement=agreement, arrival_s=list(arrival_s),
        engine=serving(rate, **changes) if is_model else None, one_by_one=serving(20), batch=serving(100),
        speedup_one_by_one=_ratio(rate / 20, trials) if is_model else None,
        speedup_batch=_ratio(rate / 100, trials) if is_model else None, aa_batch=spread,
    )  # fmt: skip
    record = factory.make(of, throughput=throughput)
    return record.model_copy(update={"config": record.config | {"engine": {"name": engine, "title": engine.upper()}}})


def _ratio(estimate: float, trials: int = 3) -> Interval:
    return Interval(estimate=estimate, low=0.9 * estimate, high=1.1 * estimate, n=trials)


def rows(folder: Path, *records: Record) -> list[evidence.Row]:
    return evidence.load(factory.store(list(records), folder / "results"))


def lines(found: list[evidence.Row], heading: str, folder: Path) -> list[str]:
    table = next(str(table) for title, table in engines.tables(found, folder) if title.startswith(heading))
    return table.splitlines()[2:]


def test_each_baseline_has_a_verdict_of_its_own(tmp_path: Path) -> None:
    found = rows(tmp_path, made("vllm", 90), made("hf_batch", 100), made("hf_generate", 20))
    one_by_one, batch, vllm = lines(found, "Prompts of one length", tmp_path)
    assert f"| 4.50{q.TIMES} [4.05,{q.GLUE}4.95] | {verdicts.FASTER} | 0.90{q.TIMES} [0.81,{q.GLUE}0.99]" in vllm
    assert f"| {verdicts.SLOWER} |" in vllm
    assert "| reference |" in one_by_one and "| reference |" in batch
    names = [line.split("[")[1].split("]")[0] for line in (one_by_one, batch, vllm)]
    assert names == ["HF_GENERATE", "HF_BATCH", "VLLM"]


@pytest.mark.parametrize("spread", [Interval(estimate=1.0, low=0.5, high=2.0, n=3), None])
@pytest.mark.parametrize(("rate", "word"), [(150, verdicts.FASTER), (100, verdicts.NO_DIFFERENCE)])
def test_words_go_by_the_speed_up_alone_whose_interval_holds_the_spread_of_trials(
    tmp_path: Path, rate: float, word: str, spread: Interval | None
) -> None:
    said = engine_sentences.sentences(rows(tmp_path, made("vllm", rate, spread=spread)))
    assert next(line for line in said if "in one batch" in line).endswith(f"({word} at 1 of 1 point).")


def test_a_range_over_points_counts_its_verdicts(tmp_path: Path) -> None:
    said = engine_sentences.sentences(rows(tmp_path, made("vllm", 50, batch=1), made("vllm", 300, batch=32)))
    assert (
        f"VLLM, prompts of one length: 0.50{q.TIMES} to 3.00{q.TIMES} the tokens per second of Transformers in one "
        "batch (slower at 1 and faster at 1 of 2 points)."
    ) in said
    assert any(
        f"2.50{q.TIMES} to 15.0{q.TIMES} the tokens per second of Transformers one by one" in line for line in said
    )


def test_one_trial_is_no_verdict() -> None:
    assert engines.verdict(Interval(estimate=5.0, low=0.0, high=float("inf"), n=1)) == verdicts.ONE_SAMPLE


def test_one_by_one_says_how_many_prompts_it_served_and_of_some_not_how_long_they_waited(tmp_path: Path) -> None:
    older, newer = made("hf_generate", 20, 4), made("hf_generate", 20, 32, n_requests=2)
    first, second = lines(rows(tmp_path, older, newer), "Prompts of one length", tmp_path)
    assert "[HF_GENERATE]" in first and "[HF_GENERATE, 2 of 32 prompts]" in second
    assert first.endswith(f"| 100{q.GLUE}ms | 200{q.GLUE}ms | 50.0{q.GLUE}ms |")
    assert second.endswith(f"| {q.DASH} | {q.DASH} | 50.0{q.GLUE}ms |")


def test_what_tokens_are_compared_with_is_not_counted_as_equal_to_itself(tmp_path: Path) -> None:
    references = [made("hf_batch", 100), made("hf_batch", 100, 32), made("hf_generate", 20)]
    compared = [made("hf_generate", 20, 32, n_requests=2), made("vllm", 90)]
    (said,) = (line for line in engine_sentences.sentences(rows(tmp_path, *references, *compared)) if "greedy" in line)
    assert said.startswith("Of 2 runs of engines 2 said") and "200 tokens" in said
    alone = engine_sentences.sentences(rows(tmp_path / "other", *references))
    assert not any("greedy" in line for line in alone)


def test_requests_that_arrive_are_judged_by_their_waiting_and_not_by_a_rate_that_is_ours(tmp_path: Path) -> None:
    found = rows(
        tmp_path, made("hf_batch", 100, **ARRIVING, ttft_s_p50=4.0, ttft_s_p90=7.0), made("vllm", 120, **ARRIVING)
    )
    batch, vllm = lines(found, "Lengths that differ, arriving at a rate that we chose", tmp_path)
    assert f"new, arriving over 2.50{q.GLUE}s |" in batch and f"| 4.00{q.GLUE}s | 7.00{q.GLUE}s |" in batch
    assert batch.endswith(f"| 420{q.GLUE}ms | 420{q.GLUE}ms |")  # from arrival: 100 ms and 32 steps of 10 ms
    assert f"| 100{q.GLUE}ms | 200{q.GLUE}ms |" in vllm and vllm.endswith(f"| 367{q.GLUE}ms | 367{q.GLUE}ms |")
    said = engine_sentences.sentences(found)
    assert (
        f"First tokens, 8 prompts of about 64 tokens, about 33 new, arriving over 2.50{q.GLUE}s: half are there after "
        f"4.00{q.GLUE}s (HF_BATCH) and 100{q.GLUE}ms (VLLM), nine in ten after 7.00{q.GLUE}s (HF_BATCH) and "
        f"200{q.GLUE}ms (VLLM), each from its own arrival; half of the requests are done after 420{q.GLUE}ms "
        f"(HF_BATCH) and 367{q.GLUE}ms (VLLM). The rate at which they arrive is ours."
    ) in said
    words = (q.TIMES, verdicts.FASTER, verdicts.SLOWER, verdicts.NO_DIFFERENCE)
    assert not any(word in line for word in words for line in (batch, vllm))
    assert not any("the tokens per second of" in line for line in said)


def test_requests_of_mixed_lengths_that_are_all_there_have_a_speed(tmp_path: Path) -> None:
    said = engine_sentences.sentences(rows(tmp_path, made("vllm", 120, workload="mixed_lengths")))
    assert any(line.startswith(f"VLLM, mixed lengths: 1.20{q.TIMES} the tokens per second") for line in said)
    assert not any("The rate at which they arrive" in line for line in said)


def test_a_request_takes_its_first_token_and_the_gaps_between_its_own(tmp_path: Path) -> None:
    record = made("vllm", 10, 2, ttft_s=[1.0, 2.0, 3.0, 4.0], tpot_s=[0.5, 0.25])  # two trials; one token has no gap
    assert record.throughput is not None
    throughput = record.throughput.model_copy(update={"n_new_tokens": [1, 5]})
    ((one,),) = engines.points(rows(tmp_path, record.model_copy(update={"throughput": throughput})))
    assert one.took_s(50) == pytest.approx(3.5)  # of 1, 4, 3 and 5 seconds


def test_how_far_trials_of_the_batch_lie_apart_is_told_over_all_points_that_have_some(tmp_path: Path) -> None:
    wide = Interval(estimate=1.0, low=0.8, high=1.2, n=3)
    found = rows(tmp_path, made("vllm", 90), made("vllm", 90, 16, spread=wide), made("vllm", 90, 32, spread=None))
    said = next(line for line in engine_sentences.sentences(found) if line.startswith("How far the batch's own trials"))
    assert f"0.80{q.TIMES} to 1.20{q.TIMES} over all points" in said
    alone = rows(tmp_path / "other", made("vllm", 90, spread=None))
    assert not any("own trials" in line for line in engine_sentences.sentences(alone))


@pytest.mark.parametrize(("correlation", "is_model"), [(0.993, True), (0.12, False)])
def test_the_speed_of_garbage_is_not_told(tmp_path: Path, correlation: float, is_model: bool) -> None:
    score = Agreement(n_steps=256, tokens_equal=0.5, correlation=correlation, kl=1.5)
    record = made("vllm_bf16", 777, workload="kv_dtypes", agreement=score, is_model=is_model)
    found = rows(tmp_path, record)
    (line,) = lines(found, "What vLLM holds", tmp_path)
    assert (engines.GARBAGE in line) is not is_model and ("777" in line) is is_model
    said = next(line for line in engine_sentences.sentences(found) if "log-probabilities" in line)
    assert f"correlate {correlation}" in said and ("its speed is not reported" in said) is not is_model


def test_memory_is_judged_by_what_is_in_use_and_not_by_the_pool(tmp_path: Path) -> None:
    pool = {"n_blocks": 512, "block_size": 32, "n_blocks_used": 6, "kv_bytes_allocated": 1 << 30, "start_up_s": 20.0}
    found = rows(tmp_path, made("vllm", 90, used=600, **pool))
    said = next(line for line in engine_sentences.sentences(found) if "blocks that vLLM used" in line)
    assert f"hold 60.0{q.GLUE}% of the bytes of Transformers' batch" in said
    (line,) = lines(found, "Bytes of keys", tmp_path)
    assert f"| 1.00{q.GLUE}GiB | 600{q.GLUE}B | 60.0{q.GLUE}% | 6 | 512 | 32 | 0 | 20.0{q.GLUE}s |" in line


def test_prefix_hits_and_what_they_save(tmp_path: Path) -> None:
    hit = {"n_prefix_tokens": 400, "n_prefix_hits": 300, "ttft_s_p50": 0.05}
    found = rows(tmp_path, made("vllm", 90, workload="shared_prefix"),
                 made("vllm_prefix", 90, workload="shared_prefix", **hit))  # fmt: skip
    said = next(line for line in engine_sentences.sentences(found) if line.startswith("Prefix caching"))
    assert f"300 of 400 prompt tokens (75.0{q.GLUE}%)" in said and f"50.0{q.GLUE}ms instead of 100{q.GLUE}ms" in said


def test_without_a_cache_is_compared_at_its_own_point(tmp_path: Path) -> None:
    found = rows(tmp_path, made("ours", 5, strategy="no_cache"), made("ours", 60), made("vllm", 90))
    said = next(line for line in engine_sentences.sentences(found) if "without a cache" in line)
    assert f"OURS, `full` 12.0{q.TIMES} and VLLM 18.0{q.TIMES}" in said


def test_what_was_skipped_says_why_and_what_would_help(tmp_path: Path) -> None:
    of = made("vllm", 90)
    skipped = of.model_copy(
        update={"status": "skipped", "reason": "no engine", "remedy": "make vllm", "throughput": None}
    )
    found = rows(tmp_path, skipped, made("hf_batch", 100))
    assert lines(found, "Not measured", tmp_path) == [
        "| `vllm` | throughput, 8 prompts | skipped | no engine | make vllm |"
    ]


def test_the_figure_shows_the_commonest_lengths_and_is_the_same_twice(tmp_path: Path) -> None:
    found = rows(
        tmp_path, made("vllm", 90), made("hf_batch", 100), made("vllm", 200, batch=32), made("vllm", 120, 4, **ARRIVING)
    )
    (name, _, rates), (other, text, waits) = engine_plots.drawn(found)
    labels = [label.get_text() for label in rates.axes[0].get_xticklabels()]
    assert (name, other) == ("engines", "engines_waiting") and labels == ["8 prompts", "32 prompts"]
    (axes,) = waits.axes
    assert (
        axes.get_title(loc="left") == f"bench, 4 prompts of about 64 tokens, about 33 new, arriving over 2.50{q.GLUE}s"
    )
    assert [bar.get_width() for bar in axes.patches] == [0.1] and f"100{q.GLUE}ms (vLLM)" in text
    for (_, _, figure), (_, _, again) in zip(engine_plots.drawn(found), engine_plots.drawn(found), strict=True):
        assert drawing.save(figure, "svg") == drawing.save(again, "svg")
    assert engine_plots.drawn(rows(tmp_path / "other", factory.timed("full"))) == []
