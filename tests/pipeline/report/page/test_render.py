"""The page says what the Markdown says, needs nothing but itself, and its charts show what the records hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pipeline.report import render
from pipeline.report.drawing import mark
from pipeline.report.page import order as page_order
from pipeline.report.page import render as page
from tests.pipeline.report import factory

VENDOR = page.HERE / "vendor"


class Seen(HTMLParser):
    """The cells of every table, row by row; what the page refers to; and which places it has."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.resources: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        if tag != "a":
            self.resources += [
                found[name] or "" for name in ("src", "href", "srcset", "data", "action") if name in found
            ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("project")
    factory.store(factory.realistic(), root / "results")
    return render.render(root / "results", root / "reports")


@pytest.fixture(scope="module")
def html(files: dict[str, bytes]) -> str:
    return files[page.PAGE].decode()


def charts_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def traces(chart: dict[str, Any]) -> list[dict[str, Any]]:
    return [trace for view in chart["views"] for trace in view["traces"]]


def test_every_table_of_the_markdown_is_in_the_page_cell_by_cell(files: dict[str, bytes], html: str) -> None:
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    names = sorted((name for name in files if name.endswith(".md")), key=lambda name: (name != "report.md", name))
    written = [table for name in names for table in Seen(parser.render(files[name].decode())).tables]
    assert Seen(html).tables == written
    assert len(written) > 40


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    seen = Seen(html)
    assert [resource for resource in seen.resources if not resource.startswith("data:")] == []
    assert "default-src 'none'" in html
    assert not re.search(r"url\((?!['\"]?data:)", page.HERE.joinpath("page.css").read_text())


def test_every_link_into_the_page_leads_to_one_place(html: str) -> None:
    seen = Seen(html)
    assert len(seen.anchors) == len(set(seen.anchors))
    inner = [link[1:] for link in seen.links if link.startswith("#")]
    assert len(inner) > 20
    assert [anchor for anchor in inner if anchor not in seen.anchors] == []
    elsewhere = [link for link in seen.links if link.endswith(".md")]
    assert elsewhere == ["report.md"]  # what is said where there is no JavaScript


def test_records_are_linked_as_in_the_report(files: dict[str, bytes], html: str) -> None:
    linked = set(re.findall(r"\]\((\.\./results/[^)]+)\)", files["report.md"].decode()))
    assert len(linked) > 20
    assert linked <= set(Seen(html).links)


def test_every_figure_of_the_report_is_a_chart_or_a_picture(files: dict[str, bytes], html: str) -> None:
    shown = re.findall(r"!\[", b"".join(content for name, content in files.items() if name.endswith(".md")).decode())
    drawn = re.findall(r'data-chart="([^"]+)"', html)
    assert len(shown) == len(drawn) + html.count('src="data:image')
    assert sorted(drawn) == sorted(charts_of(html))
    for name in ("decode_ratio", "step_latency", "step_bytes", "step_memory", "recall", "text", "attention_sink-cost"):
        assert [path for path in drawn if path.startswith(f"figures/{name}-")], name


def test_a_technique_has_its_colour_in_every_chart(html: str) -> None:
    found = charts_of(html).values()
    own = [trace for chart in found for trace in traces(chart) if trace["name"] == "attention_sink"]
    assert len(own) > 5
    assert {trace["line"]["color"] for trace in own} == {mark("attention_sink").color}


def test_a_ratio_stands_where_its_record_says_with_its_interval(html: str) -> None:
    chart = next(chart for path, chart in charts_of(html).items() if path.startswith("figures/decode_ratio-"))
    expected = next(
        record.cost
        for record in factory.realistic()
        if record.cost and (record.cell.strategy, record.cell.seq_len) == ("attention_sink", 8192)
    )
    view = next(view for view in chart["views"] if view["name"].startswith("8,192 tokens, batch 1"))
    (trace,) = (trace for trace in view["traces"] if trace["name"] == "attention_sink")
    ratio, bars = expected.tpot_ratio, trace["error_x"]
    assert trace["x"] == [pytest.approx(ratio.estimate, rel=1e-5)]
    ends = ratio.estimate - bars["arrayminus"][0], ratio.estimate + bars["array"][0]
    assert ends == (pytest.approx(ratio.low, rel=1e-4), pytest.approx(ratio.high, rel=1e-4))


def test_the_same_records_give_the_same_page(tmp_path: Path) -> None:
    factory.store([factory.timed("full", 512, 1.0), factory.judged("full", 256)], tmp_path / "results")
    once, again = (render.render(tmp_path / "results", tmp_path / "reports")[page.PAGE] for _ in range(2))
    assert once == again


def test_what_is_undefined_or_missing_is_shown_and_breaks_nothing(tmp_path: Path) -> None:
    of = factory.cell("sliding_window")
    undefined = factory.cost(of, 0.5).model_copy(update={"tpot_ratio": factory.interval(float("nan"), 0.0)})
    missing = factory.make(factory.cell("snapkv"), status="skipped", reason="does not <fit>", remedy="more memory")
    records = [factory.timed("full"), factory.make(of, cost=undefined), missing]
    factory.store(records, tmp_path / "results")
    html = render.render(tmp_path / "results", tmp_path / "reports")[page.PAGE].decode()
    cells = [cell for table in Seen(html).tables for row in table for cell in row]
    assert "undefined" in cells and "does not <fit>" in cells
    (trace,) = (
        trace
        for path, chart in charts_of(html).items()
        if "decode_ratio" in path
        for trace in traces(chart)
        if trace["name"] == "sliding_window"
    )
    assert trace["x"] == [None]


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("933 KiB", "13.8 MiB"),
        ("850 µs", "1.55 ms"),
        ("43.1 ms / 90.0 ms", "1.04 s / –"),
        ("0.94× [0.92, 1.99]", "1.02× [0.90, 1.05]"),
        ("−0.12 [−0.20, −0.04]", "+0.09 [+0.01, +0.12]"),
        ("9.5 %", "100 %"),
        ("1,024", "8,192"),
        ("8,192", "all"),
        ("0.38 (+0.90)", "0.50 (−0.10)"),
        ("19.8 GB/s", "120 GB/s"),
    ],
)
def test_quantities_sort_by_what_they_say(less: str, more: str) -> None:
    low, high = page_order.key(less), page_order.key(more)
    assert low is not None and high is not None and low < high


@pytest.mark.parametrize("text", ["–", "", "undefined", "not measured", "skipped", "kv_int8"])
def test_what_is_no_number_has_no_place_among_numbers(text: str) -> None:
    assert page_order.key(text) is None


def test_every_quantity_column_has_a_number_or_nothing_to_sort_by(html: str) -> None:
    keys = re.findall(r'<td class="number" data-order="([^"]*)"', html)
    assert len(keys) > 500
    assert all(float(key) == float(key) for key in keys if key)  # not NaN


def test_libraries_are_whole_and_keep_their_licences(html: str) -> None:
    for name in page.LIBRARIES:
        library = (VENDOR / name).read_text()
        assert library in html
        assert "icense" in library[:400]
        assert "</script" not in library
    assert len(list(VENDOR.glob("*LICENSE.txt"))) == len(page.LIBRARIES)
