"""What a claim is found to be follows the records, and whatever is missing is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import ROOT, record
from pipeline.findings import evidence, verdicts
from pipeline.judgement import Gate, Judgement
from pipeline.record import Interval, Record
from pipeline.report.claims import ledger as claims
from pipeline.report.claims import pages as claim_pages
from pipeline.report.claims.facts import of_files, of_rows
from pipeline.report.claims.ledger import Check, Claim, Expected
from pipeline.report.claims.verdicts import (
    CONTRADICTED,
    MIXED,
    NOT_TESTED,
    SUPPORTED,
    Judged,
    compared,
    judge,
)
from tests.pipeline.report import factory
from tests.pipeline.report.models import trained
from tests.pipeline.report.system import test_engines

TIMED = {"level": "token", "workload": "cost", "model": "bench", "strategy": "h2o"}
RECALLED = {"level": "token", "workload": "quality", "model": "tiny", "strategy": "h2o"}


def check(quantity: str, cells: dict[str, Any], against: dict[str, Any] | None = None, **expected: float) -> Check:
    return Check(quantity=quantity, cells=cells, against=against or {}, expected=Expected(**expected), tested_as="here")


def judged(folder: Path, records: Sequence[Record], *checks: Check) -> Judged:
    for old in folder.rglob("*.json"):
        old.unlink()
    factory.store(list(records), folder)
    facts = [*of_rows(evidence.load(folder)), *of_files(folder)]
    return judge(Claim(id="one", source="paper", claim="It is so", tests=list(checks)), facts)


def verdict(folder: Path, records: Sequence[Record], *checks: Check) -> str:
    return judged(folder, records, *checks).verdict


@pytest.mark.parametrize(
    ("low", "high", "expected", "word"),
    [
        (0.5, 0.9, {"below": 1.0}, SUPPORTED),
        (1.1, 1.2, {"below": 1.0}, CONTRADICTED),
        (0.9, 1.1, {"below": 1.0}, verdicts.NO_DIFFERENCE),
        (1.1, 1.2, {"above": 1.0}, SUPPORTED),
        (1.0, 1.0, {"above": 1.0}, verdicts.NO_DIFFERENCE),
        (2.8, 3.2, {"about": 3.0, "tolerance": 0.5}, SUPPORTED),
        (1.0, 2.4, {"about": 3.0, "tolerance": 0.5}, CONTRADICTED),
        (2.4, 2.6, {"about": 3.0, "tolerance": 0.5}, verdicts.UNDECIDED),
        (-0.1, 0.1, {"above": 0.0}, verdicts.NO_DIFFERENCE),
        (-0.03, -0.01, {"above": -0.02}, verdicts.UNDECIDED),
        (0.01, 0.03, {"below": 0.02}, verdicts.UNDECIDED),
    ],
)
def test_an_interval_is_inside_outside_or_across(
    low: float, high: float, expected: dict[str, float], word: str
) -> None:
    assert compared(Interval(estimate=(low + high) / 2, low=low, high=high, n=8), Expected(**expected)) == word


def test_other_records_are_another_verdict(tmp_path: Path) -> None:
    quick = check("decode_ratio", TIMED, below=1.0)
    slow = check("decode_ratio", TIMED, above=1.0)
    for ratio, words in ((0.5, (SUPPORTED, CONTRADICTED)), (2.0, (CONTRADICTED, SUPPORTED))):
        assert tuple(verdict(tmp_path, [factory.timed("h2o", ratio=ratio)], one) for one in (quick, slow)) == words
    assert verdict(tmp_path, [factory.timed("h2o", ratio=1.0)], quick) == verdicts.NO_DIFFERENCE


def test_what_lies_within_the_noise_is_no_difference(tmp_path: Path) -> None:
    made = factory.timed("h2o", ratio=0.93)
    assert made.cost and made.cost.tpot_ratio.high < 0.96
    noisy = made.cost.model_copy(update={"aa_tpot_ratio": factory.interval(1.0, 0.06)})
    quick = check("decode_ratio", TIMED, below=1.0)
    assert verdict(tmp_path, [made], quick) == SUPPORTED
    assert verdict(tmp_path, [made.model_copy(update={"cost": noisy})], quick) == verdicts.NO_DIFFERENCE


def test_a_speed_up_is_compared_by_its_own_interval_and_not_where_the_rate_of_requests_is_ours(tmp_path: Path) -> None:
    wide = Interval(estimate=1.0, low=0.5, high=2.0, n=3)  # how far trials of the batch lie apart
    place = {"level": "engine", "engine": "vllm"}
    faster = check("speedup_batch", place, above=1.0)
    assert verdict(tmp_path, [test_engines.made("vllm", 150, spread=wide)], faster) == SUPPORTED
    assert verdict(tmp_path, [test_engines.made("vllm", 150, spread=None)], faster) == SUPPORTED
    once = judged(tmp_path, [test_engines.made("vllm", 150, trials=1)], faster)
    assert once.verdict == NOT_TESTED and [reading.why for reading in once.readings] == [verdicts.ONE_SAMPLE]
    assert verdict(tmp_path, [test_engines.made("vllm", 150, **test_engines.ARRIVING)], faster) == NOT_TESTED


def test_a_claim_has_the_word_of_all_its_cells_and_is_mixed_where_they_differ(tmp_path: Path) -> None:
    quick = check("decode_ratio", TIMED, below=1.0)
    fast = [factory.timed("h2o", 512, 0.5), factory.timed("h2o", 1024, 0.5)]
    level, slow = factory.timed("h2o", 2048, 1.0), [factory.timed("h2o", n, 2.0) for n in (4096, 8192)]
    assert verdict(tmp_path, fast, quick) == SUPPORTED
    assert verdict(tmp_path, slow, quick) == CONTRADICTED
    for records in ([*fast, level], [*fast, *slow], [level, *slow]):
        assert verdict(tmp_path, records, quick) == MIXED
    found = judged(tmp_path, [*fast, level, *slow], quick)
    assert (found.verdict, len(found.counted)) == (MIXED, 5)


def test_where_no_cell_decides_the_claim_is_undecided_and_not_mixed(tmp_path: Path) -> None:
    direction = check("decode_ratio", TIMED, below=1.0)
    value = check("decode_ratio", TIMED, about=1.5, tolerance=0.5)
    found = judged(tmp_path, [factory.timed("h2o", ratio=1.0)], direction, value)
    assert [reading.verdict for reading in found.readings] == [verdicts.NO_DIFFERENCE, verdicts.UNDECIDED]
    assert found.verdict == verdicts.UNDECIDED


@pytest.mark.parametrize(
    ("quantity", "ratio", "side"),
    [
        ("decode_ratio", 0.5, "better than claimed"),
        ("decode_ratio", 7.0, "worse than claimed"),
        ("bandwidth_share", 1.0, "worse than claimed"),
    ],
)
def test_a_contradiction_says_on_which_side_of_the_claim_it_lies(
    tmp_path: Path, quantity: str, ratio: float, side: str
) -> None:
    records = [factory.timed("h2o", ratio=ratio)]
    (reading,) = judged(tmp_path, records, check(quantity, TIMED, about=3.0, tolerance=0.5)).readings
    assert reading.says == f"{CONTRADICTED}, {side}"


def test_a_quantity_without_a_better_side_says_above_or_below(tmp_path: Path) -> None:
    records = [factory.timed("h2o", ratio=0.4), factory.timed("tova", ratio=0.8)]
    (reading,) = judged(tmp_path, records, check("decode_between", TIMED, {"strategy": "tova"}, above=1.0)).readings
    assert reading.says == f"{CONTRADICTED}, below what is claimed"


def test_cells_are_chosen_by_value_list_and_range(tmp_path: Path) -> None:
    records = [factory.timed(name, n, 0.5) for name in ("h2o", "tova") for n in (512, 1024, 2048)]
    for cells, n in (
        ({"strategy": "h2o"}, 3),
        ({"strategy": ["h2o", "tova"], "seq_len": 1024}, 2),
        ({"strategy": "h2o", "seq_len": {"max": 1024}}, 2),
        ({"strategy": "h2o", "seq_len": {"min": 1024, "max": 1024}}, 1),
    ):
        assert len(judged(tmp_path, records, check("decode_ratio", TIMED | cells, below=1.0)).readings) == n


def test_ratios_to_another_cache_have_to_be_asked_for(tmp_path: Path) -> None:
    records = [factory.benchmarked("h2o")]
    place = {"level": "benchmark", "strategy": "h2o"}
    assert verdict(tmp_path, records, check("decode_ratio", place, below=1.0)) == NOT_TESTED
    assert verdict(tmp_path, records, check("decode_ratio", place | {"baseline": "hf_dynamic"}, below=1.0)) == SUPPORTED


def test_what_is_not_there_is_named_with_the_command_that_measures_it(tmp_path: Path) -> None:
    records = [factory.timed("h2o", 512, 0.5)]
    found = judged(tmp_path, records, check("decode_ratio", TIMED | {"seq_len": {"min": 8192}}, below=1.0))
    assert (found.verdict, found.counted) == (NOT_TESTED, [])
    assert found.missing == [
        "No record of `level=token, workload=cost, model=bench, strategy=h2o, seq_len=from 8192`. Measure with "
        "`python -m pipeline.run strategy=h2o model=bench workload=cost workload.seq_len=[8192]`."
    ]
    several = judged(tmp_path, records, check("decode_ratio", TIMED | {"strategy": ["h2o", "tova"]}, below=1.0))
    assert several.verdict == SUPPORTED
    assert len(several.missing) == 1 and "strategy=tova`" in several.missing[0]


@pytest.mark.parametrize(
    ("place", "command"), [({"level": "study"}, "make study"), ({"part": "policies"}, "python -m pipeline.serving")]
)
def test_each_place_has_its_command(tmp_path: Path, place: dict[str, Any], command: str) -> None:
    quantity = "utilisation" if "part" in place else "decode_ratio"
    found = judged(tmp_path, [factory.timed("full")], check(quantity, place, below=1.0))
    assert f"Measure with `{command}`." in found.missing[0]


def test_a_cell_that_was_skipped_says_why_and_what_would_help(tmp_path: Path) -> None:
    skipped = factory.make(factory.cell("h2o"), status="skipped", reason="no | memory", remedy="a larger machine")
    found = judged(tmp_path, [skipped], check("decode_ratio", TIMED, below=1.0))
    assert found.verdict == NOT_TESTED
    assert "skipped, no \\| memory. What would help: a larger machine." in found.missing[0]


def test_a_record_without_the_quantity_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, [factory.timed("h2o")], check("recall_difference", TIMED, above=0.0))
    assert found.verdict == NOT_TESTED and "without a value for “recall difference" in found.missing[0]


def test_one_sample_and_nan_give_no_verdict(tmp_path: Path) -> None:
    made = factory.timed("h2o", ratio=0.5)
    assert made.cost
    for ratio, why in (
        (Interval(estimate=0.5, low=0.5, high=0.5, n=1), verdicts.ONE_SAMPLE),
        (Interval(estimate=float("nan"), low=float("nan"), high=float("nan"), n=8), verdicts.UNDEFINED),
    ):
        altered = made.model_copy(update={"cost": made.cost.model_copy(update={"tpot_ratio": ratio})})
        found = judged(tmp_path, [altered], check("decode_ratio", TIMED, below=1.0))
        assert found.verdict == NOT_TESTED
        assert [reading.why for reading in found.readings] == [why]


def test_two_techniques_are_compared_item_by_item(tmp_path: Path) -> None:
    better = check("recall_between", RECALLED, {"strategy": "tova"}, above=0.0)
    for own, theirs, word in ((0.1, 0.6, SUPPORTED), (0.6, 0.1, CONTRADICTED), (0.3, 0.3, verdicts.NO_DIFFERENCE)):
        records = [factory.judged("h2o", loss=own), factory.judged("tova", loss=theirs)]
        found = judged(tmp_path, records, better)
        assert found.verdict == word
        assert found.readings[0].measured.value.estimate == pytest.approx(theirs - own, abs=0.01)
    alone = judged(tmp_path, [factory.judged("h2o", loss=0.1)], better)
    assert alone.verdict == NOT_TESTED and "beside `strategy=tova`" in alone.missing[0]


def test_a_pair_has_the_same_length_and_budget(tmp_path: Path) -> None:
    better = check("recall_between", RECALLED, {"strategy": "tova"}, above=0.0)
    elsewhere = [factory.judged("tova", 1024, 0.9), factory.judged("tova", loss=0.9, kv_budget=64)]
    assert verdict(tmp_path, [factory.judged("h2o", loss=0.1), *elsewhere], better) == NOT_TESTED


def test_two_speeds_are_a_quotient_with_the_uncertainty_of_both(tmp_path: Path) -> None:
    records = [factory.timed("h2o", ratio=0.4), factory.timed("tova", ratio=0.8)]
    found = judged(tmp_path, records, check("decode_between", TIMED, {"strategy": "tova"}, below=1.0))
    value = found.readings[0].measured.value
    assert (found.verdict, value.estimate) == (SUPPORTED, pytest.approx(0.5))
    assert value.high / value.estimate > 1.02  # each of the two is known to within 2 %


def test_bytes_of_one_length_over_another(tmp_path: Path) -> None:
    cells = {"level": "model", "model": "mamba", "seq_len": 8192}
    constant = check("kv_between", cells, {"seq_len": 512}, about=1.0, tolerance=0.01)
    for n_bytes, word in ((4096, SUPPORTED), (8192, CONTRADICTED)):
        records = [trained.timed("mamba", 512, 4096), trained.timed("mamba", 8192, n_bytes)]
        assert verdict(tmp_path, records, constant) == word


def test_a_gate_tests_a_claim_with_its_own_interval(tmp_path: Path) -> None:
    shown = check("gate", {"part": "gates", "name": "sinks"}, above=0.0)
    factory.store([factory.timed("full")], tmp_path)
    for low, word in ((0.1, SUPPORTED), (-0.1, verdicts.NO_DIFFERENCE)):
        gate = Gate(name="sinks", unit="nats", seq_len=512, value=0.3, bound=0.0, n=40, passed=True,
                    interval=Interval(estimate=0.3, low=low, high=0.5, n=40))  # fmt: skip
        record.write(Judgement(model="tiny", weights_sha256=None, gates=[gate]), tmp_path / "gates.json")
        facts = of_files(tmp_path)
        assert judge(Claim(id="one", source="paper", claim="It is so", tests=[shown]), facts).verdict == word


def test_the_committed_records_decide_at_least_twenty_claims() -> None:
    results = ROOT / "results"
    found = claim_pages.judgement(evidence.load(results), results)
    assert len([one for one in found.judged if one.verdict != NOT_TESTED]) >= 20
    assert {SUPPORTED, CONTRADICTED} <= {one.verdict for one in found.judged}
    assert all(one.missing for one in found.judged if one.verdict == NOT_TESTED and not one.readings)


def test_every_claim_is_judged_where_there_is_hardly_a_record(tmp_path: Path) -> None:
    factory.store([factory.timed("full")], tmp_path)
    facts = [*of_rows(evidence.load(tmp_path)), *of_files(tmp_path)]
    for one in claims.read().claims:
        found = judge(one, facts)
        assert found.verdict != NOT_TESTED or found.missing or found.readings
