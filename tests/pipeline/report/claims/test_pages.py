"""The ledger and its summary say what was found, with links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from pipeline.findings import evidence
from pipeline.report import render
from pipeline.report.claims import ledger as claims
from pipeline.report.claims import pages as claim_pages
from pipeline.report.claims.facts import of_rows
from pipeline.report.claims.verdicts import CONTRADICTED, MIXED, NOT_TESTED, ORDER, SUPPORTED, judge
from tests.pipeline.report import factory

SLOW = "h2o_slower"  # 5 to 10 times


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a few records, written."""
    root = tmp_path_factory.mktemp("project")
    timed = [factory.timed(name, 1024, ratio) for name, ratio in (("full", 1.0), ("h2o", 7.0), ("no_cache", 29.0))]
    judged = [factory.judged(name, 512, loss) for name, loss in (("full", 0.0), ("h2o", 0.5), ("kv_int8", 0.0))]
    factory.store(timed + judged, root / "results")
    render.write(render.render(root / "results", root / "reports"), root / "reports")
    return root


def test_every_claim_has_one_line_and_one_section(root: Path) -> None:
    text = (root / "reports" / "claims.md").read_text()
    sections = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert sections == [one.id for one in claims.read().claims]
    assert re.findall(r"\]\(#([^)]+)\) \|", text) == sections


def test_every_table_is_one_and_every_link_leads_to_a_file(root: Path) -> None:
    text = (root / "reports" / "claims.md").read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert html.count("<table>") == len(re.findall(r"^\| (?::---|---:)", text, re.MULTILINE)) > 3
    assert ":---" not in html
    targets = {found for found in re.findall(r'<a href="([^"#]+)"', html) if not found.startswith("http")}
    assert len(targets) > 3
    assert [found for found in targets if not (root / "reports" / unquote(found)).is_file()] == []


def test_each_section_says_how_near_the_test_comes_and_shows_its_cells(root: Path) -> None:
    section = _section((root / "reports" / "claims.md").read_text(), SLOW)
    assert "**supported**" in section and "[arXiv" not in section and "An earlier study of GPT-2" in section
    assert "Tested as: a Llama shape of 8 layers" in section
    assert re.search(r"\| \[`h2o`, 1,024 tokens on `bench`.*\]\(\.\./results/token/h2o/.*\.json\) \|", section)
    assert "Not tested: No record of `level=study, strategy=h2o" in section and "`make study`" in section


def test_the_report_has_what_was_decided_and_how_many_of_each(root: Path) -> None:
    report = (root / "reports" / "report.md").read_text()
    section = report.partition("## Published claims, put to the test")[2].partition("\n## ")[0]
    linked = re.findall(r"\(claims\.md#([^)]+)\)", section)
    found = claim_pages.judgement(evidence.load(root / "results"), root / "results")
    words = {one.claim.id: one.verdict for one in found.judged}
    assert sorted(linked) == sorted(name for name, word in words.items() if word in (SUPPORTED, MIXED, CONTRADICTED))
    counted = ", ".join(f"{word} {sum(own == word for own in words.values())}" for word in ORDER)
    assert counted in section
    assert "*mixed*" in section and "*undecided*" in section  # every word is explained where it is read
    assert sum(word == NOT_TESTED for word in words.values()) > 10


def test_several_cells_are_summed_up_by_the_range_that_was_found_and_by_how_many_say_what(tmp_path: Path) -> None:
    ratios = {512: 0.5, 1024: 3.0, 2048: 3.1, 4096: 9.0}
    factory.store([factory.timed("h2o", n, ratio) for n, ratio in ratios.items()], tmp_path)
    cells = {"level": "token", "workload": "cost", "model": "bench", "strategy": "h2o"}
    three = {"about": 3.0, "tolerance": 0.5}
    test = {"quantity": "decode_ratio", "cells": cells, "expected": three, "tested_as": "a small model"}
    claim = claims.Claim.model_validate({"id": "one", "source": "paper", "claim": "It is so", "tests": [test]})
    source = claims.Source(title="A paper", citation="not published")
    found = judge(claim, of_rows(evidence.load(tmp_path)))
    part = claim_pages.summary(claim_pages.Judgement(claims.Ledger(sources={"paper": source}, claims=[claim]), [found]))
    ((heading, table),) = part.tables
    (line,) = table.rows
    assert (heading, found.verdict) == ("Mixed", MIXED)
    assert line[2:4] == ["2.50× to 3.50×", "decode step over the reference's: 0.50× to 9.00×"]
    said = "1 contradicted, better than claimed; 1 contradicted, worse than claimed; 2 supported"
    assert line[5] == f"mixed ({said})"


@pytest.mark.usefixtures("undrawn")
def test_other_records_are_another_sentence(root: Path, tmp_path: Path) -> None:
    assert "supported" in _line((root / "reports" / "claims.md").read_text(), SLOW)
    factory.store([factory.timed("full", 1024), factory.timed("h2o", 1024, 0.5)], tmp_path)
    text = render.render(tmp_path, tmp_path / "reports")["claims.md"].decode()
    assert "0.50×" in _line(text, SLOW) and "contradicted" in _line(text, SLOW)


@pytest.mark.usefixtures("undrawn")
def test_the_same_records_give_the_same_bytes(root: Path) -> None:
    written = (root / "reports" / "claims.md").read_bytes()
    assert render.render(root / "results", root / "reports")["claims.md"] == written


def test_the_template_holds_no_verdict_of_a_claim() -> None:
    template = (Path(claim_pages.__file__).parents[1] / claim_pages.TEMPLATE).read_text()
    assert not re.search(r"\d+ (?:claims|of)|supported \d|contradicted \d", template)


def _section(text: str, name: str) -> str:
    return text.partition(f"### {name}\n")[2].partition("\n### ")[0]


def _line(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if f"](#{name})" in line)
