"""What is said about ablations follows from their records, and they are no techniques of the other sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.findings import evidence, verdicts
from pipeline.record import Items, Record
from pipeline.report import render
from pipeline.report.ablations import axes, equal_bytes
from pipeline.report.ablations import parts as ablations
from tests.pipeline.report import factory

BUDGETS = (0.1, 0.25, 0.5)
PARTS = {
    "scorer": "strategies.token.recency.RecencyScorer",
    "allocation": "strategies.token.uniform.UniformAllocation",
    "encoding": "strategies.token.dense.DenseStorage",
}
N = factory.N_ITEMS


def strategy_config(ratio: float | None, **parts: dict[str, Any]) -> dict[str, Any]:
    return {"keep_ratio": ratio, "kv_budget": None} | {name: {"_target_": at} for name, at in PARTS.items()} | parts


def point(name: str, ratio: float | None, right: int, share: float | None = None, **parts: dict[str, Any]) -> Record:
    """The first `right` of all items are answered, under either protocol, while `share` of the bytes are held."""
    of = factory.cell(name, level="ablation", model="tiny", workload="budgets", kv_budget=ratio and round(512 * ratio))
    made = factory.make(of, max_seq_len=1024, quality=factory.quality(0.0, share or ratio or 1.0))
    assert made.quality is not None
    correct = [1.0] * right + [0.0] * (N - right)
    items = Items(depth=[], correct=correct, correct_full=[1.0] * N, nll=[0.1] * N, nll_full=[0.1] * N)
    tasks = [task.model_copy(update={"items": items}) for task in made.quality.tasks]
    quality = made.quality.model_copy(update={"tasks": tasks})
    config = {"strategy": strategy_config(ratio, **parts), "baseline": strategy_config(None)}
    return made.model_copy(update={"quality": quality, "config": made.config | config})


def curve(name: str, *right: int, scorer: str = "h2o") -> list[Record]:
    part = {"_target_": f"strategies.token.{scorer}.Scorer"}
    return [point(name, ratio, n, scorer=part) for ratio, n in zip(BUDGETS, right, strict=True)]


def said(records: list[Record], folder: Path) -> list[str]:
    rows = evidence.load(factory.store(records, folder))
    found = [line for own in ablations.ablations(rows, folder) for line in own.sentences]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in found]


def test_the_best_at_equal_bytes_follows_from_the_records(tmp_path: Path) -> None:
    for one, other in (("h2o", "tova"), ("tova", "h2o")):
        records = curve(one, 80, 90, 95) + curve(other, 20, 40, 93, scorer="tova")
        lines = said(records, tmp_path / one)
        at = {share: next(line for line in lines if line.startswith(f"At {share} %")) for share in ("25.0", "50.0")}
        assert at["25.0"].startswith(
            f"At 25.0 % of the full cache's bytes, query-agnostic recall is highest with `{one}` (0.90 [0.8"
        )
        assert at["25.0"].endswith(f"Against it, worse: `{other}` (0.40).")
        assert at["50.0"].endswith(f"Against it, no difference found: `{other}` (0.93).")


def test_between_budgets_items_are_interpolated_over_the_logarithm_and_nowhere_else(tmp_path: Path) -> None:
    rows = evidence.load(factory.store(curve("h2o", 20, 40, 80), tmp_path))
    (found,) = equal_bytes.curves(rows, "query_agnostic")
    middle = found.at((0.1 * 0.25) ** 0.5)
    assert middle is not None
    assert middle.mean() == pytest.approx(0.30, abs=1e-3)
    assert found.at(0.0999) is None and found.at(0.501) is None


def test_a_technique_of_one_size_is_met_at_the_bytes_that_it_holds(tmp_path: Path) -> None:
    codes = {"_target_": "strategies.token.per_token.PerTokenStorage", "bits": 4}
    records = [*curve("h2o", 10, 30, 60), point("kv_int4", None, 95, share=0.2, encoding=codes)]
    (line,) = (line for line in said(records, tmp_path) if "what `kv_int4` holds" in line)
    assert line.startswith("At 20.0 % of the full cache's bytes") and "highest with `kv_int4` (0.95" in line
    assert line.endswith("Against it, worse: `h2o` (0.25).")


def test_a_tiny_shift_of_every_item_is_no_difference() -> None:
    assert verdicts.corrected(-0.019, 1e-4) == verdicts.corrected(-0.3, 0.06) == verdicts.NO_DIFFERENCE
    assert (verdicts.corrected(-0.3, 0.04), verdicts.corrected(0.3, 0.04)) == (verdicts.WORSE, verdicts.BETTER)


def test_an_axis_is_varied_where_nothing_else_differs(tmp_path: Path) -> None:
    pyramid = {"_target_": "strategies.token.pyramid.PyramidAllocation"}
    codes = [{"_target_": "strategies.token.kivi.KiviStorage", "bits": bits} for bits in (2, 4)]
    records = [point("window", 0.25, 60), point("window", 0.1, 30)]
    records += [point("window+allocation=pyramid", 0.25, 20, allocation=pyramid)]
    records += [point(f"window+encoding.bits={c['bits']}", 0.25, 60, encoding=c, allocation=pyramid) for c in codes]
    rows = evidence.load(factory.store(records, tmp_path))
    found = axes.varied(rows)
    assert list(found) == ["allocation", "encoding"]
    (of,) = found["encoding"]
    assert [axes.part_name(row, of) for row in of.rows] == ["dense", "kivi, bits=2", "kivi, bits=4"]
    (line,) = axes.sentences(found["allocation"], axes.compare(found["allocation"]))
    assert line.replace("\N{NO-BREAK SPACE}", " ") == (
        "Query-agnostic recall with all else as in `window` at 25 %, against allocation `uniform`: "
        "worse: `pyramid` (−0.40)."
    )


def test_the_correction_counts_every_comparison_of_the_axis(tmp_path: Path) -> None:
    """A difference that alone would be one is none among many."""

    def word(n_others: int) -> str:
        part = [{"_target_": "strategies.token.ratios.Ratios", "ratio": i} for i in range(n_others + 1)]
        records = [point("window", 0.25, 60), point("window+allocation.ratio=0", 0.25, 53, allocation=part[0])]
        records += [point(f"window+allocation.ratio={i}", 0.25, 60, allocation=part[i]) for i in range(1, n_others + 1)]
        rows = evidence.load(factory.store(records, tmp_path / str(n_others)))
        found = axes.varied(rows)["allocation"]
        (compared,) = axes.compare(found)
        return next(c.recall["query_agnostic"][1] for c in compared if c.row.strategy.endswith("=0"))

    assert (word(0), word(5)) == (verdicts.WORSE, verdicts.NO_DIFFERENCE)


def test_ablations_have_their_own_section_and_are_in_no_other(tmp_path: Path) -> None:
    records = [*curve("tova", 20, 40, 60), *curve("h2o", 40, 60, 80, scorer="sinks")]
    factory.store([*records, factory.judged("full", 512), factory.judged("sliding_window", 512, 0.5)], tmp_path)
    files = render.render(tmp_path, tmp_path / "reports")
    text = files[render.REPORT].decode()
    start, end = text.index("## Ablations: model `tiny`"), text.index("\n## Skipped and failed")
    assert "### Quality against bytes held" in text[start:end] and "### Scorer, all else equal" in text[start:end]
    others = text[:start] + text[end:]
    assert "## Token level: rankings" in others
    assert [line for line in others.splitlines() if "tova" in line and not line.startswith("| ablation |")] == []
    assert {f"figures/{name}-ablation-budgets-tiny.png" for name in ("recall", "text")} <= files.keys()
    assert sum("ablation/" in line for line in text[start:end].splitlines()) >= len(records)


@pytest.mark.usefixtures("undrawn")
def test_without_ablations_there_is_no_section(tmp_path: Path) -> None:
    factory.store([factory.judged("full", 512)], tmp_path)
    assert "Ablations" not in render.render(tmp_path, tmp_path / "reports")[render.REPORT].decode()
