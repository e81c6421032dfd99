"""Tables and sentences at production scale follow the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import ROOT, record
from pipeline.findings import quantities as q
from pipeline.memory import production as computed
from pipeline.memory.production import HeadCount, Held, Point, Production, Shape
from pipeline.report import drawing, render
from pipeline.report.memory import production, production_plots
from tests.pipeline.report import factory

GIB = 2**30
PLAN = computed.plan()


def shape(name: str, refused: str = "") -> Shape:
    held = [
        Held(title=holding.title, kept=[n * 2**17 // (i + 1) for n in PLAN.seq_len], kept_batched=GIB, refused="")
        for i, holding in enumerate(PLAN.holdings)
    ]
    if refused:
        held[1] = Held(title=PLAN.holdings[1].title, kept=[], kept_batched=None, refused=refused)
    return Shape(model=name, title=f"{name}, published shape", n_layers=32, weight_bytes=14 * GIB,
                 kv_bytes_per_token=2**17, held=held)  # fmt: skip


def points(asked: computed.Points, *sizes: float) -> list[Point]:
    return [
        Point(
            **one.model_dump(),
            kept=int(size * GIB),
            held=int(size * GIB),
            weight_bytes=130 * GIB,
            largest_batch=int(400 / size),
            largest_batch_of_one=0,
        )
        for one, size in zip(asked.points, sizes, strict=True)
    ]


FOUND = Production(
    plan=PLAN,
    shapes=[shape("alpha"), shape("beta", refused="keys of 192 | dimensions")],
    heads=[
        HeadCount(
            n_kv_heads=n,
            weight_bytes=15 * GIB,
            kept=[n * GIB // 32] * len(PLAN.heads.seq_len),
            largest_batch=[64 // n] * len(PLAN.heads.seq_len),
        )
        for n in PLAN.heads.n_kv_heads
    ],
    scenarios=points(PLAN.scenarios, 80, 10, 5, 2.5, 2.5, 0.5),
    stack=points(PLAN.stack, 64, 16, 4),
)


def test_a_line_for_each_model_and_a_dash_where_nothing_is_held() -> None:
    tables = dict(production.tables(FOUND))
    assert [row[0] for row in tables["Shapes"].rows] == ["alpha (`alpha`)", "beta (`beta`)"]
    assert tables["Shapes"].rows[0][2:5] == [f"14.0{q.GLUE}GiB", f"128{q.GLUE}KiB", f"4.00{q.GLUE}KiB"]
    int8 = tables["INT8, one sequence"]
    assert int8.rows[1][1:] == [q.DASH] * len(PLAN.seq_len)
    assert tables["FP16, one sequence"].rows[0][1] == f"64.0{q.GLUE}MiB"


def test_scenarios_are_shares_of_the_first() -> None:
    table = dict(production.tables(FOUND))["Llama 2 70B at 32,768 tokens"]
    assert [row[3] for row in table.rows] == [
        q.share(share) for share in (1.0, 0.125, 0.0625, 0.03125, 0.03125, 0.00625)
    ]
    assert [row[-1] for row in table.rows] == [f"`{point.options}`" for point in PLAN.scenarios.points]


def test_what_is_said_is_computed() -> None:
    said = production.sentences(FOUND)
    assert said[0] == "INT8 of `beta`: not held, keys of 192 \\| dimensions."
    assert f"with 8 KV heads instead of 32, {q.ratio(0.25)} the bytes" in said[1]
    assert "64 sequences of 131,072 tokens instead of 2" in said[1]
    assert f"from 80.0{q.GLUE}GiB" in said[2]
    assert said[2].endswith(f"{q.ratio(160)} less.")
    assert f"130{q.GLUE}GiB in float16, more than 80{q.GLUE}GB hold" in said[3]
    assert "6 of 6 ways" in said[3] and "batches are 5 to 800." in said[3]
    assert f"64.0{q.GLUE}GiB (one KV head for each query head) → 16.0{q.GLUE}GiB" in said[4]
    assert said[4].endswith(f"{q.ratio(4)} and {q.ratio(4)} less by each step, {q.ratio(16)} in all.")


def test_the_figure_has_a_bar_for_each_scenario() -> None:
    ((_, text, figure),) = production_plots.drawn(FOUND)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [point.kept for point in FOUND.scenarios]  # type: ignore[attr-defined]
    assert "computed" in text and "computed" in axes.get_xlabel()
    assert drawing.save(figure)["svg"] == drawing.save(production_plots.drawn(FOUND)[0][2])["svg"]


def test_it_is_in_the_report_where_it_was_computed(tmp_path: Path) -> None:
    factory.store([factory.timed("full")], tmp_path)
    assert "production scale" not in render.render(tmp_path, tmp_path / "reports")["report.md"].decode()
    record.write(FOUND, tmp_path / computed.FILE)
    files = render.render(tmp_path, tmp_path / "reports")
    section = files["report.md"].decode().partition("## Memory at production scale")[2].partition("\n## ")[0]
    assert all(str(table) in section for _, table in production.tables(FOUND))
    assert all(sentence in section for sentence in production.sentences(FOUND))
    assert "figures/production.png" in section and files["figures/production.png"]


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    (tmp_path / computed.FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"corrupt .*memory\.json"):
        computed.read(tmp_path)


def test_what_is_committed_answers_the_plan_that_is_committed() -> None:
    found = computed.read(ROOT / "results")
    assert found is not None and found.plan == PLAN
