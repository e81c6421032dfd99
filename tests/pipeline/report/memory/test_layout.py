"""Words and shares of memory layouts follow the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import layout as measured
from pipeline import record
from pipeline.findings import quantities as q
from pipeline.layout import AGAIN, REFERENCE, Layouts, Plan, Point, Timed
from pipeline.report import render
from pipeline.report.memory import layout
from tests.pipeline.report import factory


def timed(ratio: float, reference_s: float) -> Timed:
    return Timed(seconds=[ratio * reference_s] * 3, ratio=factory.interval(ratio, 0.02))


def point(seq_len: int, tokens_first: float, paged: float) -> Point:
    append = {REFERENCE: 1.0, AGAIN: 1.0, "tokens_first": 0.8, "paged": 2.0}
    attend = {REFERENCE: 1.0, AGAIN: 1.0, "tokens_first": tokens_first, "paged": paged}
    return Point(
        n_kv_heads=4,
        seq_len=seq_len,
        append={name: timed(ratio, 1e-4) for name, ratio in append.items()},
        attend={name: timed(ratio, 1e-6 * seq_len) for name, ratio in attend.items()},
    )


def found(*points: Point) -> Layouts:
    environment = {"hardware_id": factory.MACHINE, "n_threads": 2}
    return Layouts(fingerprint="f" * 64, environment=environment, plan=Plan(), points=list(points))


TWO = found(point(1000, 1.01, 3.0), point(4000, 1.3, 2.5))


def test_each_layout_is_said_with_its_verdicts_and_its_range() -> None:
    said = layout.sentences(TWO)
    assert (
        "Attending to all tokens, tokens first: no difference found at 1 and slower at 1 of 2 points; "
        "1.01× to 1.30× of heads first." in said
    )
    assert "Attending to all tokens, pages: slower at 2 of 2 points; 2.50× to 3.00× of heads first." in said
    assert "Appending a token, tokens first: faster at 2 of 2 points; 0.80× to 0.80× of heads first." in said


def test_the_share_of_appending_is_computed() -> None:
    share = layout.sentences(TWO)[-1]
    assert f"2.5{q.GLUE}% to 10.0{q.GLUE}% of the time of attending" in share


def test_a_table_for_each_job_with_a_line_for_each_point() -> None:
    (_, append), (_, attend) = layout.tables(TWO)
    assert [heading for heading, _ in attend.columns] == [
        "KV heads", "Tokens", "Heads first", "Noise", "Tokens first", "Pages",
    ]  # fmt: skip
    assert list(attend.rows[1]) == [
        "4", "4,000", f"4.00{q.GLUE}ms", f"[0.98,{q.GLUE}1.02]", f"1.30× [1.28,{q.GLUE}1.32]",
        f"2.50× [2.48,{q.GLUE}2.52]",
    ]  # fmt: skip
    assert append.rows[0][2] == f"100{q.GLUE}µs"


@pytest.mark.usefixtures("undrawn")
def test_every_machine_that_measured_it_is_in_the_report_and_without_any_there_is_no_section(tmp_path: Path) -> None:
    factory.store([factory.timed("full")], tmp_path)
    assert "lie in memory" not in render.render(tmp_path, tmp_path / "reports")["report.md"].decode()
    for machine in ("machine-a", "machine-b"):
        record.write(
            TWO.model_copy(update={"environment": TWO.environment | {"hardware_id": machine}}),
            measured.path_of(tmp_path, machine),
        )
    text = render.render(tmp_path, tmp_path / "reports")["report.md"].decode()
    section = text.partition("## How keys and values lie in memory")[2].partition("## An earlier study")[0]
    for machine in ("machine-a", "machine-b"):
        assert f"### Memory layout on machine `{machine}`, 2 threads" in section
    assert all(str(table) in section for _, table in layout.tables(TWO))
