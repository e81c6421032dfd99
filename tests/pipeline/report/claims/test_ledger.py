"""The file of claims is valid, and what is wrong in one is said in one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.config import Experiment
from pipeline.refusals import CONF
from pipeline.report.__main__ import main
from pipeline.report.claims import ledger as claims
from pipeline.report.claims import remedies as claim_remedies
from pipeline.report.claims.facts import PARTS
from pipeline.report.claims.quantities import QUANTITIES
from tests.pipeline.report import factory

LEDGER = claims.read()
FROM_PAPERS = {
    "2309.17453", "2306.14048", "2404.14469", "2406.02069", "2405.14366", "2402.02750", "2305.13245",
    "2405.04434", "2211.10438", "2208.07339", "2410.03111", "2303.08302", "2309.06180", "2403.19887",
}  # fmt: skip


def claim(**changes: Any) -> dict[str, Any]:
    check = {
        "quantity": "decode_ratio",
        "cells": {"level": "token", "workload": "cost", "model": "bench", "strategy": "h2o"},
        "expected": {"below": 1.0},
        "tested_as": "a small model",
    }
    return {"id": "quick", "source": "paper", "claim": "It is quicker", "tests": [check | changes]}


def written(folder: Path, *entries: dict[str, Any], citation: str = "arXiv:2306.14048") -> Path:
    file = folder / "claims.yaml"
    sources = {"paper": {"title": "A paper", "citation": citation}}
    OmegaConf.save({"sources": sources, "claims": list(entries)}, file)
    return file


def test_there_are_at_least_forty_claims_each_with_a_citation_and_every_paper_that_was_asked_for() -> None:
    assert len(LEDGER.claims) >= 40
    assert all(LEDGER.source(one).citation for one in LEDGER.claims)
    cited = {LEDGER.source(one).citation.removeprefix("arXiv:") for one in LEDGER.claims}
    assert cited >= FROM_PAPERS
    assert {one.source for one in LEDGER.claims} == set(LEDGER.sources)


def test_every_quantity_and_every_part_is_asked_for() -> None:
    checks = [check for one in LEDGER.claims for check in one.tests]
    assert {check.quantity for check in checks} == set(QUANTITIES)
    assert {check.cells["part"] for check in checks if "part" in check.cells} == set(PARTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantity": "speed"}, r"claim quick: quantity=speed: unknown; valid: decode_ratio, "),
        ({"cells": {"strategy": "h3o"}}, r"claim quick: strategy=h3o: unknown; valid: .*h2o"),
        ({"cells": {"strategy": ["h2o", "h3o"]}}, r"strategy=h3o: unknown"),
        ({"cells": {"model": "gpt5"}}, r"model=gpt5: unknown"),
        ({"cells": {"speed": 3}}, r"speed=3: no coordinate; valid: level, model, "),
        ({"cells": {"part": "nowhere"}}, r"part=nowhere: unknown; valid: shapes, "),
        ({"cells": {"part": "gates", "model": "bench"}}, r"model=bench: no coordinate; valid: name"),
        ({"cells": {}}, r"claim\.quick\.tests\.0\.cells: "),
        ({"expected": {"about": 2.0}}, r"claim\.quick\.tests\.0\.expected: .*about with tolerance"),
        ({"expected": {"above": 1.0, "below": 2.0}}, r"expected: .*below, above, or about"),
        ({"expected": {"below": "fast"}}, r"expected\.below: "),
        ({"tested_as": ""}, r"tested_as: "),
        ({"against": {"strategy": "full"}}, r"quantity=decode_ratio with against=.*: valid: no against"),
        ({"quantity": "decode_between"}, r"quantity=decode_between with against={}: valid: against, "),
    ],
)
def test_a_fault_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/claims\.yaml: .*{said}") as fault:
        claims.read(written(tmp_path, claim(**changes)))
    assert "\n" not in str(fault.value)


def test_a_claim_has_a_source_with_a_citation_a_name_of_its_own_and_a_test_or_a_reason(tmp_path: Path) -> None:
    entry = claim()
    assert claims.read(written(tmp_path, entry)).claims[0].id == "quick"
    for entries, citation, said in (
        ([entry], "", r"sources\.paper\.citation"),
        ([entry | {"source": "hearsay"}], "x", "source=hearsay has no citation; valid: paper"),
        ([entry, entry], "x", "id=quick is that of another claim"),
        ([entry | {"tests": []}], "x", r"claim\.quick: .*untested with the reason"),
        ([entry | {"untested": "too large"}], "x", r"claim\.quick: .*tests, or untested"),
        ([entry | {"id": "Not a slug"}], "x", "id: "),
    ):
        with pytest.raises(ValueError, match=said):
            claims.read(written(tmp_path, *entries, citation=citation))


def test_what_is_no_yaml_is_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "claims.yaml"
    file.write_text("claims: [")
    with pytest.raises(ValueError, match=r"claims\.yaml: not YAML: ") as fault:
        claims.read(file)
    assert "\n" not in str(fault.value)


def test_a_bad_claim_ends_the_report_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factory.store([factory.timed("full")], tmp_path / "results")
    file = written(tmp_path, claim(quantity="speed"))
    monkeypatch.setattr("pipeline.report.claims.pages.read", lambda: claims.read(file))
    assert main([str(tmp_path / "results"), str(tmp_path / "reports")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "quantity=speed: unknown" in said and said.count("\n") == 1
    assert not (tmp_path / "reports").exists()


COMMANDS = {claim_remedies.remedy(check).split("`")[1] for one in LEDGER.claims for check in one.tests}
RUNS = sorted(command for command in COMMANDS if command.startswith("python -m pipeline.run "))


@pytest.mark.parametrize("command", RUNS)
def test_the_command_that_would_measure_is_accepted(command: str) -> None:
    """Of a sweep its first job."""
    options = [option for option in shlex.split(command)[3:] if option != "--multirun"]
    first = [option if "[" in option else option.partition(",")[0] for option in options]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert Experiment.from_hydra(compose("config", first))


@pytest.mark.parametrize(
    ("expected", "is_direction"),
    [
        ({"below": 1.0}, True),
        ({"above": 0.0}, True),
        ({"above": -0.02}, False),
        ({"below": 0.55}, False),
        ({"about": 1.0, "tolerance": 0.1}, False),
    ],
)
def test_a_direction_is_a_side_of_no_difference(expected: dict[str, float], is_direction: bool) -> None:
    assert claims.Expected(**expected).is_direction is is_direction


def test_constant_time_is_a_claim_of_its_own_which_bytes_do_not_support() -> None:
    by_id = {one.id: one for one in LEDGER.claims}
    assert [check.quantity for check in by_id["rwkv_constant_memory"].tests] == ["kv_between"]
    assert "time" not in by_id["rwkv_constant_memory"].claim
    assert by_id["rwkv_constant_time"].untested
