"""What is advised follows the records: a technique made slow or lossy in the data is never recommended."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.findings import evidence
from pipeline.findings import quantities as q
from pipeline.record import Record
from pipeline.report.advice import use_cases as advice
from pipeline.report.advice.use_cases import Advice
from tests.pipeline.report import factory

TITLES = ["Throughput service", "Edge device", "Long document", "Chat", "Research"]


def advised(records: list[Record], folder: Path) -> list[Advice]:
    rows = evidence.load(factory.store(records, folder / "results"))
    return advice.advised(rows, folder / "reports")


def one(records: list[Record], folder: Path) -> Advice:
    (found,) = advised([factory.timed("full", 4096, 1.0), factory.judged("full"), *records], folder)
    return found


def both(name: str, ratio: float = 0.9, loss: float = 0.0) -> list[Record]:
    return [factory.timed(name, 4096, ratio), factory.judged(name, 512, loss)]


def answers(of: Advice) -> dict[str, str]:
    return {case.title: next(line for line in case.sentences if line.startswith("Use: ")) for case in of.cases}


def test_a_small_fast_technique_that_loses_nothing_is_the_answer_to_everything(tmp_path: Path) -> None:
    found = one([*both("tova"), *both("h2o", loss=0.5)], tmp_path)
    said = answers(found)
    assert list(said) == TITLES
    assert all("**`tova`**, the only one that qualifies" in answer for answer in said.values())
    assert "h2o" not in found.tree and found.tree.count("`tova`") == 8


def test_a_technique_made_slow_is_called_slow_and_never_recommended_where_time_counts(tmp_path: Path) -> None:
    found = one(both("tova", ratio=1.5), tmp_path)
    said = answers(found)
    for title in ("Throughput service", "Chat"):
        assert "Use: the full cache. No technique qualifies." in said[title]
        assert re.search(r"Nearest is \[`tova`\]\(.*\), which takes 1\.50× of the full cache's decode step \(slower\)",
                         said[title])  # fmt: skip
    assert "**`tova`**" in said["Edge device"]  # no bound on time
    assert sum("found slower" in line and "`tova`](" in line and "(1.50×)" in line for line in found.insights) == 1
    assert found.guide.rows[0][3:5] == [f"[0.98,{q.GLUE}1.02]", "slower"]


def test_a_technique_made_lossy_is_never_recommended(tmp_path: Path) -> None:
    found = one(both("tova", ratio=0.3, loss=0.4), tmp_path)
    assert all("No technique qualifies." in answer and "keeps " in answer for answer in answers(found).values())
    assert "`tova`, " not in found.tree
    assert found.tree.count("no technique qualifies") == 8


def test_another_takes_the_place_of_one_that_is_ruled_out(tmp_path: Path) -> None:
    fast, good = both("knorm", ratio=0.3, loss=0.4), both("kv_int8", ratio=0.95)
    assert all("**`kv_int8`**" in answer for answer in answers(one([*fast, *good], tmp_path / "a")).values())
    cured = both("knorm", ratio=0.3)
    said = answers(one([*cured, *good], tmp_path / "b"))
    assert "**`knorm`**" in said["Chat"] and "the first of 2 that qualify" in said["Chat"]


def test_controls_are_in_the_guide_and_never_advised(tmp_path: Path) -> None:
    found = one([*both("oracle", 0.5), *both("random_eviction", 0.5), *both("tova", 1.5, loss=0.4)], tmp_path)
    assert not any("oracle" in answer or "random" in answer for answer in answers(found).values())
    assert [(row[0].split("`")[1], row[9]) for row in found.guide.rows] == [
        ("tova", "–"), ("oracle", "a control"), ("random_eviction", "a control"),
    ]  # fmt: skip


def test_the_guide_says_what_each_technique_is_best_for(tmp_path: Path) -> None:
    found = one([*both("tova"), *both("h2o", loss=0.07)], tmp_path)
    rows = {row[0].split("`")[1]: row for row in found.guide.rows}
    assert rows["tova"][9] == ", ".join(TITLES) and rows["tova"][7] == "nothing"
    assert rows["h2o"][9] == "–" and rows["h2o"][10] == "Throughput service, Edge device"
    assert rows["h2o"][7].startswith("recall later")


def test_the_guide_counts_the_parts_that_differ_from_those_of_the_full_cache(tmp_path: Path) -> None:
    records = both("tova")
    parts = {"scorer": {"_target_": "a.Tova"}, "encoding": {"_target_": "a.Int8"}}
    changed = [r.model_copy(update={"config": r.config | {"strategy": r.config["strategy"] | parts}}) for r in records]
    assert one(changed, tmp_path).guide.rows[0][8] == "2 parts: scorer, encoding"


def test_every_link_is_a_record(tmp_path: Path) -> None:
    found = one([*both("tova"), *both("h2o", 1.5, loss=0.3)], tmp_path)
    text = "\n".join([*found.insights, *(line for case in found.cases for line in case.sentences), found.tree])
    links = set(re.findall(r"\]\((\.\.[^)]+)\)", text + str(found.guide)))
    assert len(links) > 4 and all((tmp_path / "reports" / link).resolve().is_file() for link in links)


def test_no_advice_without_cost_and_quality_of_the_same_technique(tmp_path: Path) -> None:
    assert advised([factory.timed("tova", 4096)], tmp_path / "a") == []
    assert advised([factory.timed("tova", 4096), factory.judged("h2o")], tmp_path / "b") == []
    assert advised([factory.timed("oracle", 4096), factory.judged("oracle")], tmp_path / "c") == []


def test_each_machine_that_timed_techniques_is_advised_and_says_whose_quality_it_takes(tmp_path: Path) -> None:
    factory.store([factory.timed("tova", 4096, 1.5)], tmp_path / "results", "machine-b")
    there, here = advised(both("tova"), tmp_path)
    assert there.machine == "machine-b" and f"on `{factory.MACHINE}`" in there.basis
    assert "**`tova`**" in answers(here)["Chat"] and "No technique qualifies" in answers(there)["Chat"]
