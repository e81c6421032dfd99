from __future__ import annotations

from pipeline.findings import quantities as q
from pipeline.judgement import Gate, Kept
from pipeline.record import Interval
from pipeline.report import judged


def test_a_gate_that_was_missed_stands_out() -> None:
    missed = Gate(name="multi_key_8", unit="accuracy", seq_len=512, value=0.91, bound=0.93, n=200, passed=False)
    lines = judged.gates([missed, missed.model_copy(update={"passed": True})]).rows
    assert [line[-1] for line in lines] == ["**not passed**", "passed"]
    assert list(lines[0][:5]) == ["multi key 8 (accuracy)", "512", "0.910", "at least 0.93", "200"]


def test_a_compared_gate_shows_its_interval_and_its_p() -> None:
    found = Gate(
        name="oracle over h2o", unit="accuracy", seq_len=512, value=0.5, bound=0, n=200, passed=True, rule="not below",
        interval=Interval(estimate=0.5, low=0.4, high=0.6, n=200), p_value=1.0,
    )  # fmt: skip
    (line,) = judged.gates([found]).rows
    assert list(line[2:4]) == [f"0.500 [0.400,{q.GLUE}0.600], p 1.00", "not below 0"]


def kept(technique: str, accuracy: float, asked: float) -> Kept:
    return Kept(
        technique=technique, task="multi_key_8", protocol="query_agnostic", seq_len=512, kv_budget=128, n_items=64,
        accuracy=accuracy, by_kind={"asked value": asked, "text": 0.2}, by_depth=[0.0, 0.5],
    )  # fmt: skip


def test_what_is_kept_is_shown_best_recall_first_by_kind_and_by_depth() -> None:
    (kind, by_kind), (depth, by_depth) = judged.kept([kept("h2o", 0.2, 0.3), kept("knorm", 0.9, 0.95)])
    assert "query-agnostic, 128 of 512 tokens" in kind and "query-agnostic" in depth
    assert [heading for heading, _ in by_kind.columns] == ["Scorer", "Recall", "Asked value", "Text"]
    assert [line[0] for line in by_kind.rows] == ["`knorm`", "`h2o`"]
    assert [heading for heading, _ in by_depth.columns[2:]] == [f"0 to 50{q.GLUE}%", f"50 to 100{q.GLUE}%"]


def test_what_explains_the_order_is_computed() -> None:
    same_order = [kept("a", 0.1, 0.2), kept("b", 0.5, 0.6), kept("c", 0.9, 1.0)]
    assert "correlate with 1.00 over 3 scorers" in judged.explanation(same_order)[0]
    assert judged.explanation([kept("a", 1.0, 0.2), kept("b", 1.0, 0.6)]) == []
