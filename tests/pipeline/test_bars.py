"""When a bar is met, missed or neither, and when a miss is a defect."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline import bars
from pipeline.bars import Bar, Plan, Point
from pipeline.record import Interval, Record
from tests.pipeline.report import factory

AT = Point(model="bench", seq_len=4096, batch=1)


def plan(**of: Bar) -> Plan:
    return Plan(reference="hf_dynamic", extra=[], skipped={}, default=[AT], grid=[], judged_at=AT, bars=of)


def timed(strategy: str, ratio: float, **environment: Any) -> Record:
    made = factory.benchmarked(strategy, ratio=ratio)
    return made.model_copy(update={"environment": made.environment | environment})


def verdicts(record: Record, bar: Bar) -> dict[str, str]:
    return {line.kind: line.verdict for line in bars.judge([record], plan(**{record.cell.strategy: bar}))}


@pytest.mark.parametrize(
    ("estimate", "half_width", "expected"),
    [(0.4, 0.05, bars.MET), (0.6, 0.05, bars.MISSED), (0.48, 0.05, bars.NOISE), (0.52, 0.05, bars.NOISE)],
)
def test_only_a_whole_interval_decides(estimate: float, half_width: float, expected: str) -> None:
    assert bars.verdict(factory.interval(estimate, half_width), 0.5) == expected


def test_one_trial_decides_and_says_that_it_was_one() -> None:
    one = Interval(estimate=0.4, low=0.0, high=math.inf, n=1)
    assert bars.verdict(one, 0.5) == bars.MET + bars.ONE_TRIAL
    assert bars.verdict(one, 0.3) == bars.MISSED + bars.ONE_TRIAL


def test_the_file_names_every_bar_of_the_judged_point() -> None:
    written = bars.load()
    assert written.judged_at == written.default[0] == AT
    assert all(0 < bar.decode <= 1 <= bar.prefill and 0 < bar.kv_bytes <= 1 for bar in written.bars.values())


def test_bytes_may_exceed_the_share_by_what_was_generated_where_the_bar_says_so() -> None:
    record = timed("snapkv", 0.4)
    assert record.cost is not None
    kept = round(0.25 * record.cost.full.kv_bytes_logical) + 4 * factory.KV_BYTES_PER_TOKEN
    arm = record.cost.technique.model_copy(update={"kv_bytes_logical": kept, "kv_bytes_held": [kept]})
    more = record.model_copy(update={"cost": record.cost.model_copy(update={"technique": arm})})
    bar = Bar(decode=0.5, prefill=1.15, kv_bytes=0.25)
    assert verdicts(more, bar)["logical bytes"] == bars.MISSED
    assert verdicts(more, bar.model_copy(update={"plus": ["new_tokens"]}))["logical bytes"] == bars.MET


def test_held_bytes_beyond_bookkeeping_and_headroom_miss() -> None:
    record = timed("snapkv", 0.4)
    assert record.cost is not None
    held = round(1.5 * record.cost.technique.kv_bytes_logical)
    arm = record.cost.technique.model_copy(update={"kv_bytes_held": [held]})
    wasteful = record.model_copy(update={"cost": record.cost.model_copy(update={"technique": arm})})
    bar = Bar(decode=0.5, prefill=1.15, kv_bytes=0.3)
    assert verdicts(record, bar)["held bytes"] == bars.MET
    assert verdicts(wasteful, bar)["held bytes"] == bars.MISSED


def test_an_encoding_without_a_compiler_is_reported_and_not_gated() -> None:
    slow, bar = timed("kivi", 5.0), Bar(decode=0.5, prefill=1.3, kv_bytes=0.3, compiled=True)
    assert set(verdicts(slow, bar).values()) == {bars.REPORTED}
    assert verdicts(timed("kivi", 5.0, cpp_compiler="/usr/bin/g++"), bar)["decode"] == bars.MISSED


def test_a_missed_bar_is_a_defect_only_where_it_is_worse_than_our_own_full_cache() -> None:
    bar = plan(tova=Bar(decode=0.5, prefill=1.6, kv_bytes=0.3))
    slower = [timed("full", 0.6), timed("tova", 0.7)]
    assert len(bars.defects(slower, bar)) == 1 and "tova decode: 0.70 of hf_dynamic" in bars.defects(slower, bar)[0]
    assert bars.defects([timed("full", 0.8), timed("tova", 0.7)], bar) == []
    assert bars.defects([timed("full", 0.3), timed("tova", 0.4)], bar) == []  # slower than full, but the bar is met


def test_machines_are_judged_apart() -> None:
    bar = plan(tova=Bar(decode=0.5, prefill=1.6, kv_bytes=0.3))
    assert bars.defects([timed("full", 0.6, hardware_id="a"), timed("tova", 0.7, hardware_id="b")], bar) == []


def test_the_break_even_is_the_length_from_which_every_interval_lies_below_one() -> None:
    below, unsure, above = factory.interval(0.8, 0.1), factory.interval(0.95, 0.1), factory.interval(1.3, 0.1)
    assert bars.break_even([(512, above), (1024, below), (2048, below)]) == 1024
    assert bars.break_even([(512, below), (1024, unsure), (2048, below)]) == 2048
    assert bars.break_even([(512, below), (1024, unsure)]) is None


def test_a_plan_that_is_none_is_refused_by_field_and_file(tmp_path) -> None:
    wrong = tmp_path / "plan.yaml"
    wrong.write_text(bars.FILE.read_text().replace("decode: 0.75, prefill: 1.1,", "decode: fast, prefill: 1.1,"))
    with pytest.raises(ValueError, match=r"bars\.full\.decode: .*; see .*plan\.yaml"):
        bars.load(wrong)
