from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pipeline.findings import evidence
from pipeline.findings import quantities as q
from pipeline.record import Record
from pipeline.report import context, render
from pipeline.report.tokens import crossing, sentences, tables
from tests.pipeline.report import factory


def rows_of(records: list, folder: Path) -> list[evidence.Row]:
    return evidence.load(factory.store(records, folder / "results"))


def test_every_cell_of_the_cost_table_is_a_field_of_its_record(tmp_path: Path) -> None:
    (row,) = rows_of([factory.timed("sliding_window", 4096, 0.45)], tmp_path)
    cost = row.record.cost
    assert cost is not None
    (line,) = tables.technique_cost([row], tmp_path / "reports").rows
    held = q.data(cost.technique.kv_bytes_held[-1])
    assert line[1:] == [
        "1",
        held,
        q.share(cost.technique.kv_bytes_held[-1] / cost.full.kv_bytes_held[-1]),
        q.ratio_interval(cost.ttft_ratio),
        q.ratio_ends(cost.aa_ttft_ratio),
        "no difference found",
        q.ratio_interval(cost.tpot_ratio),
        q.ratio_ends(cost.aa_tpot_ratio),
        "faster",
    ]


def test_lengths_link_to_the_record_behind_the_row(tmp_path: Path) -> None:
    (row,) = rows_of([factory.timed("sliding_window", 4096)], tmp_path)
    (line,) = tables.technique_cost([row], tmp_path / "reports").rows
    target = line[0].removeprefix("[4,096](").removesuffix(")")
    assert (tmp_path / "reports" / target).resolve() == row.path.resolve()


def test_recall_table_shows_every_task_under_both_protocols(tmp_path: Path) -> None:
    (row,) = rows_of([factory.judged("sliding_window", 512, 0.8)], tmp_path)
    table = tables.technique_recall(row)
    assert len(table.rows) == 2 * len(factory.TASKS)
    assert {line[2] for line in table.rows} == {"0.57 (0.97)", "0.17 (0.97)"}


def test_a_skipped_technique_keeps_its_line_in_the_comparison(tmp_path: Path) -> None:
    skipped = factory.make(factory.cell("no_cache"), status="skipped", reason="too slow", remedy="time")
    rows = rows_of([factory.timed("full", ratio=1.0), skipped], tmp_path)
    lines = tables.summary_cost(rows, evidence.labels(rows), tmp_path).rows
    assert [("no_cache" in line[0], line[-1]) for line in lines] == [(False, "no difference found"), (True, "skipped")]


def test_a_verdict_in_short_stands_beside_the_noise_that_it_is_by(tmp_path: Path) -> None:
    of = factory.cell("h2o")
    noisy = factory.cost(of, 0.9).model_copy(update={"aa_tpot_ratio": factory.interval(1.0, 0.15)})
    rows = rows_of([factory.timed("full", ratio=1.0), factory.make(of, cost=noisy), factory.timed("tova", ratio=0.9)],
                   tmp_path)  # fmt: skip
    table = tables.summary_cost(rows, evidence.labels(rows))
    assert [heading for heading, _ in table.columns][3:] == [
        "First token", "Noise", "is", "Decode step", "Noise", "is",
    ]  # fmt: skip
    found = {line[0]: line[6:] for line in table.rows}
    ratio = q.ratio_interval(factory.interval(0.9, 0.018))
    assert found["h2o"] == [ratio, f"[0.85,{q.GLUE}1.15]", "no difference found"]
    assert found["tova"] == [ratio, f"[0.98,{q.GLUE}1.02]", "faster"]
    assert "full, once more" in found


def timed_once(name: str) -> Record:
    of = factory.cell(name)
    cost = factory.cost(of, 1.0).model_copy(update={"ttft_ratio": factory.interval(1.1, 0.0, n=1)})
    return factory.make(of, cost=cost)


def test_first_tokens_of_one_trial_are_said_once_and_not_in_every_line(tmp_path: Path) -> None:
    skipped = factory.make(factory.cell("no_cache"), status="skipped", reason="too slow", remedy="time")
    rows = rows_of([timed_once("full"), timed_once("tova"), skipped], tmp_path / "all")
    table = tables.summary_cost(rows, evidence.labels(rows))
    assert [heading for heading, _ in table.columns][3:] == ["First token", "Decode step", "Noise", "is"]
    assert {line[3] for line in table.rows} == {f"1.10{q.TIMES}", q.DASH} and table.rows[1][-1] == "skipped"
    (said,) = sentences.once(rows)
    assert said == "First tokens were timed in a single trial each, which is no verdict, at 512 tokens and batch 1."
    rows = rows_of([timed_once("full"), factory.timed("tova")], tmp_path / "some")
    assert sentences.once(rows) == [] and tables.summary_cost(rows, evidence.labels(rows)).rows[0][5] == "one sample"


def test_quality_in_short_shows_measured_bytes_and_the_stricter_verdict(tmp_path: Path) -> None:
    rows = rows_of([factory.judged("sliding_window", 512, 0.8)], tmp_path)
    (line,) = tables.summary_quality(rows, evidence.labels(rows)).rows
    assert line[1:3] == [q.data(factory.ITEM_BYTES / 4), q.share(0.25)]
    assert line[3:6] == [f"0.17 ({q.MINUS}0.80)", "worse", f"0.57 ({q.MINUS}0.40)"]
    assert line[6:] == ["4.66 (+0.16)", "worse"]


def test_failed_and_skipped_cells_are_listed_with_reason_and_remedy(tmp_path: Path) -> None:
    rows = rows_of(factory.realistic(), tmp_path)
    lines = context.not_measured(rows, tmp_path).rows
    assert [(line[3], line[4], line[5]) for line in lines] == [
        ("skipped", "needs at least 900 s", "a higher profile.max_cell_s"),
        ("failed", "MemoryError: 12 GiB \\| not free", "a smaller batch"),
    ]


def test_text_from_records_cannot_break_a_table(tmp_path: Path) -> None:
    table = tables.Table([("Why", "l")], [[q.free_text("a | b\n<script>c")]])
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(str(table))
    assert html.count("<tr>") == 2
    assert html.count("<td") == 1
    assert "<script>" not in html


def test_the_environment_has_a_column_for_each_machine(tmp_path: Path) -> None:
    factory.store([factory.timed("full")], tmp_path / "results", "machine-b")
    table = context.environment(rows_of([factory.timed("full")], tmp_path))
    assert [heading for heading, _ in table.columns] == ["", "`machine-b`", f"`{factory.MACHINE}`"]
    assert all(len(line) == 3 for line in table.rows)
    assert ["torch", "2.13.0+cpu", "2.13.0+cpu"] in [list(line) for line in table.rows]


def test_what_crosses_the_link_bounds_a_step(tmp_path: Path) -> None:
    (row,) = rows_of([factory.offloaded(factory.timed("offload"), 10**9, 1e11)], tmp_path)
    cost, predicted = row.record.cost, row.record.predicted
    assert cost and predicted and predicted.decode_floor_s < 0.01
    (line,) = crossing.of_technique([row]).rows
    used = q.share(0.01 / cost.technique.tpot_s_p50)
    assert line == ["512", "1", q.data(10**9), "100 GB/s".replace(" ", q.GLUE), q.seconds(0.01),
                    q.seconds(cost.technique.tpot_s_p50), used]  # fmt: skip
    assert tables.technique_ceilings([row]).rows[0][3] == q.seconds(0.01)
    assert any(line[0] == "measured link from the host" for line in context.environment([row]).rows)
    assert "gets 100 GB/s from the host, as measured" in context.machines([row])[0].replace(q.GLUE, " ")


def test_a_link_that_is_faster_than_memory_bounds_nothing(tmp_path: Path) -> None:
    (row,) = rows_of([factory.offloaded(factory.timed("offload"), 10**9, 1e15)], tmp_path)
    assert row.record.predicted and row.step_floor_s == row.record.predicted.decode_floor_s


@pytest.mark.parametrize(("n_bytes", "link"), [(10**9, None), (0, 1e11), (0, None)])
@pytest.mark.usefixtures("undrawn")
def test_where_nothing_crosses_a_link_nothing_is_said_of_it(tmp_path: Path, n_bytes: int, link: float | None) -> None:
    results = factory.store([factory.offloaded(factory.timed("offload"), n_bytes, link)], tmp_path / "results")
    report = render.render(results, tmp_path / "reports")[render.REPORT].decode()
    assert "Beside the measured link" not in report
    assert ("measured link" in report) == bool(link)


def test_configuration_names_the_parts_of_every_axis(tmp_path: Path) -> None:
    table = context.configuration(rows_of([factory.timed("sliding_window")], tmp_path))
    assert [list(line) for line in table.rows] == [
        ["scorer", "`SinkScorer`, `n_sinks=4`"],
        ["allocation", "`UniformAllocation`"],
        ["budget", "25 %"],
    ]


def test_units_change_with_the_size() -> None:
    assert [q.seconds(s).replace(q.GLUE, " ") for s in (2.5, 0.0123, 4e-6, 0.5)] == [
        "2.50 s",
        "12.3 ms",
        "4.00 µs",
        "500 ms",
    ]
    assert [q.data(n).replace(q.GLUE, " ") for n in (0, 1536, 3 << 20, 5 << 30)] == [
        "0 B",
        "1.50 KiB",
        "3.00 MiB",
        "5.00 GiB",
    ]
    assert [q.ratio(r) for r in (0.0456, 0.456, 4.56, 45.6, 456.0)] == ["0.046×", "0.46×", "4.56×", "45.6×", "456×"]
    assert [q.tick(q.data(n)).replace(q.GLUE, " ") for n in (0, 384 << 20, 3 << 20, 1536)] == [
        "0 B",
        "384 MiB",
        "3 MiB",
        "1.5 KiB",
    ]
    assert q.ratio(float("nan")) == "undefined"
    assert q.signed(-0.0004) == "+0.00"


def test_a_single_sample_is_shown_without_an_interval() -> None:
    single = factory.interval(0.7, 0.0, n=1)
    assert q.ratio_interval(single) == "0.70×"
    assert q.ratio_ends(single) == q.DASH
    assert q.ratio_interval(factory.interval(0.7, 0.1)).replace(q.GLUE, " ") == "0.70× [0.60, 0.80]"
