"""What benchmarks.md says follows the records: change them and the words change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pipeline import bars
from pipeline.findings import quantities as q
from pipeline.record import Record
from pipeline.report import render
from pipeline.report.benchmark import page as benchmarks
from pipeline.report.parts import Gallery
from tests.pipeline.report import factory

PLAN = bars.load()
LENGTHS = (1024, 2048, 4096)


def page(records: list[Record], folder: Path) -> str:
    """The page and its files, as the report stage writes them."""
    results = factory.store([*records, factory.timed("full")], folder / "results")
    render.write(render.render(results, folder / "reports"), folder / "reports")
    return (folder / "reports" / benchmarks.PAGE).read_text()


def section(text: str, heading: str) -> str:
    return text.partition(f"### {heading}\n")[2].partition("\n### ")[0]


def line(text: str, heading: str, name: str) -> str:
    return next(row for row in section(text, heading).splitlines() if row.startswith(f"| `{name}`"))


def seen(ratio: float, **changes: Any) -> list[Record]:
    lengths = {4096: 1.0, 32768: ratio}
    return [factory.benchmarked("tova", n, r, model="bench_small", workload=bars.SEEN) for n, r in lengths.items()]


@pytest.mark.usefixtures("undrawn")
def test_a_fast_technique_meets_its_bar_and_a_slow_one_misses_it(tmp_path: Path) -> None:
    fast = page([factory.benchmarked("full", ratio=0.6), factory.benchmarked("tova", ratio=0.4)], tmp_path / "fast")
    slow = page([factory.benchmarked("full", ratio=0.6), factory.benchmarked("tova", ratio=0.58)], tmp_path / "slow")
    assert "| met |" in line(fast, "Time", "tova") and "missed" not in line(fast, "Time", "tova")
    assert "**missed**" in line(slow, "Time", "tova") and "defect" not in line(slow, "Time", "tova")
    assert section(fast, "Missed bars").startswith("\nNone.")
    assert "8 met" in fast and "1 missed" in slow


@pytest.mark.usefixtures("undrawn")
def test_a_missed_bar_is_explained_by_shapes_and_by_what_was_found(tmp_path: Path) -> None:
    records = [factory.benchmarked("full", ratio=0.6), factory.benchmarked("tova", ratio=0.58)]
    said = section(page(records, tmp_path), "Missed bars")
    assert re.search(r"`tova`, decode: 0\.58× where 0\.55× is allowed\. Of the .+ that its step reads", said)
    assert "**Not explained yet.**" in said


def test_an_explanation_of_the_plan_is_shown(tmp_path: Path) -> None:
    why = "Its scores are read again in every step."
    plan = PLAN.model_copy(update={"bars": PLAN.bars | {"tova": PLAN.bars["tova"].model_copy(update={"why": why})}})
    rows = benchmarks_rows([factory.benchmarked("tova", ratio=0.58)], tmp_path)
    machine = benchmarks._machine(factory.MACHINE, rows, tmp_path, plan, Gallery())
    assert machine.missed[0].endswith(why)


def benchmarks_rows(records: list[Record], folder: Path):
    return render.evidence.load(factory.store(records, folder))


@pytest.mark.usefixtures("undrawn")
def test_slower_than_our_own_full_cache_is_a_defect(tmp_path: Path) -> None:
    text = page([factory.benchmarked("full", ratio=0.6), factory.benchmarked("tova", ratio=0.9)], tmp_path)
    assert re.search(r"a defect: 1\.50× \[.+\] of `full`", line(text, "Time", "tova"))
    assert "a defect: `tova`." in text


@pytest.mark.usefixtures("undrawn")
def test_what_was_skipped_or_not_run_says_so(tmp_path: Path) -> None:
    of = factory.benchmarked("snapkv").cell
    skipped = factory.make(of, status="skipped", reason="no | compiler", remedy="install one")
    text = page([factory.benchmarked("full", ratio=0.6), skipped], tmp_path)
    assert line(text, "Time", "snapkv").count("skipped") == 2
    assert line(text, "Time", "knorm").count("not measured") == 2
    assert "skipped: no \\| compiler" in text


@pytest.mark.usefixtures("undrawn")
def test_a_technique_pays_from_where_all_lengths_are_faster_than_our_full_cache(tmp_path: Path) -> None:
    speeds = {1024: 1.02, 2048: 0.8, 4096: 0.6}
    level = [factory.timed("tova", n, ratio) for n, ratio in speeds.items()]
    assert "2,048 tokens" in line(page([*level, factory.benchmarked("full", ratio=0.6)], tmp_path / "a"),
                                  "Where a technique starts to pay", "tova")  # fmt: skip
    beside = [factory.benchmarked("full", ratio=0.6), factory.benchmarked("tova", ratio=0.9)]
    said = line(page(level + beside, tmp_path / "b"), "Where a technique starts to pay", "tova")
    assert "not within the measured lengths" in said  # the benchmark found it slower at the longest


@pytest.mark.usefixtures("undrawn")
def test_memory_that_grows_with_the_square_of_the_prompt_is_called_that(tmp_path: Path) -> None:
    straight = [factory.timed("tova", n) for n in LENGTHS] + [factory.benchmarked("full", ratio=0.6)]
    bent = [_with_peak(record, 100 * record.cell.seq_len**2) for record in straight[:3]]
    assert "is linear" in page(straight, tmp_path / "a")
    assert "is not linear: `tova`" in page([*bent, straight[3]], tmp_path / "b")


def _with_peak(record: Record, n_bytes: int) -> Record:
    assert record.cost is not None
    arm = record.cost.technique.model_copy(update={"step_peak_memory_bytes": [n_bytes]})
    return record.model_copy(update={"cost": record.cost.model_copy(update={"technique": arm})})


@pytest.mark.usefixtures("undrawn")
def test_what_crosses_the_link_is_told_where_one_was_measured(tmp_path: Path) -> None:
    heading = "What crosses the link from the host"
    there = factory.offloaded(factory.benchmarked("offload", ratio=0.6), 10**9, 1e11)
    found = section(page([there], tmp_path / "gpu"), heading).replace(q.GLUE, " ")
    assert "[offload](" in found and "| 4,096 | 1 | 954 MiB | 100 GB/s |" in found
    assert heading not in page([factory.benchmarked("offload", ratio=0.6)], tmp_path / "cpu")


@pytest.mark.usefixtures("undrawn")
def test_a_step_that_grows_with_what_was_seen_is_named(tmp_path: Path) -> None:
    heading = "The step after a long stream"
    assert "no growth found after 32,768 tokens: `tova`" in section(page(seen(1.0), tmp_path / "a"), heading)
    assert "a step grows after 32,768 tokens: `tova`" in section(page(seen(1.4), tmp_path / "b"), heading)


def test_the_page_is_the_same_bytes_twice_and_its_tables_and_figures_are_whole(tmp_path: Path) -> None:
    records = [factory.benchmarked(name, ratio=r) for name, r in (("full", 0.6), ("tova", 0.58), ("knorm", 0.4))]
    records += [factory.benchmarked("tova", batch=8), factory.benchmarked("tova", model="bench_gqa"), *seen(1.1)]
    results = factory.store([*records, factory.timed("full")], tmp_path / "results")
    once, twice = (render.render(results, tmp_path / "reports") for _ in range(2))
    assert once == twice
    text = once[benchmarks.PAGE].decode()
    shown = set(re.findall(r"figures/[^)]+", text))
    assert shown == {name for name in once if name.startswith("figures/benchmark-")} and len(shown) == 6
    for target in re.findall(r"\]\((\.\.[^)]+)\)", text):
        assert (tmp_path / "reports" / target).resolve().exists()
    assert "<table>" in MarkdownIt("commonmark").enable("table").render(text)
    widths = {row.count("|") - row.count("\\|") for row in section(text, "Time").splitlines() if row.startswith("|")}
    assert len(widths) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_report_sums_the_benchmark_up_and_leads_to_it(tmp_path: Path) -> None:
    page([factory.benchmarked("full", ratio=0.6), factory.benchmarked("tova", ratio=0.9)], tmp_path)
    report = (tmp_path / "reports" / render.REPORT).read_text()
    assert "[benchmarks.md](benchmarks.md)" in report and "of 8 bars" in report
    assert "Benchmark level" not in report


def test_on_a_gpu_a_step_stands_beside_the_same_step_launched_from_python(tmp_path: Path) -> None:
    gpu: dict[str, Any] = {"model": "llama_3_1_8b", "seq_len": 8192, "device": "cuda", "dtype": "bfloat16"}
    slow = factory.launched(factory.benchmarked("tova", ratio=0.5, **gpu), 0.030, 0.060)
    fast = factory.launched(factory.benchmarked("snapkv", ratio=0.4, **gpu), 0.040, 0.060)
    text = page([slow, fast], tmp_path)
    assert "| Launched from Python |" in text
    assert re.search(r"\[tova\].*\| 30\.0.ms \|", text) and re.search(r"\[snapkv\].*\| 40\.0.ms \|", text)
    assert f"take {q.seconds(0.030)} to {q.seconds(0.040)} (HfDynamic's {q.seconds(0.060)})" in text
    assert "Kendall's tau-b of the two orders is −1.00." in text
    assert "benchmark-steps-8192-1-" in text
    assert "which was not measured here" in text and "### Time" not in text


@pytest.mark.usefixtures("undrawn")
def test_where_nothing_was_captured_nothing_is_said_of_launching(tmp_path: Path) -> None:
    text = page([factory.benchmarked("tova", ratio=0.5)], tmp_path)
    assert "| Launched from Python |" not in text and "benchmark-steps" not in text
