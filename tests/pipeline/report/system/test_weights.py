"""What the report says of ways to hold weights: every verdict from its interval, every byte from the tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.findings import evidence
from pipeline.record import Record
from pipeline.report.render import render
from pipeline.report.system import weight_plots, weights
from pipeline.report.system.weights import Place
from tests.pipeline.report import factory

PLAIN = {"embeddings and head": 40_000_000, "quantised layers": 0, "other layers": 120_000_000}


def held(name: str, share: float = 1.0, ratio: float = 1.0) -> Record:
    """Cost on `gpt2`; `share` of the plain layers' bytes, in quantised ones."""
    of = factory.cell("full", workload="weights_cost", level="system", model="gpt2", weights=name)
    cost = factory.cost(of, ratio)
    layers = {"quantised layers": round(share * 120_000_000), "other layers": 0} if share < 1 else {}
    arms = {
        "technique": cost.technique.model_copy(update={"weight_bytes": PLAIN | layers}),
        "full": cost.full.model_copy(update={"weight_bytes": PLAIN}),
    }
    return factory.make(of, cost=cost.model_copy(update=arms))


def read(name: str, loss: float = 0.0) -> Record:
    of = factory.cell("full", workload="weights_quality", level="system", model="tiny", weights=name)
    return factory.make(of, max_seq_len=1024, quality=factory.quality(loss, 1.0))


def places(tmp_path: Path, *records: Record) -> list[Place]:
    return weights.places(evidence.load(factory.store(list(records), tmp_path)))


def test_what_is_saved_is_computed_from_the_bytes_of_all_components(tmp_path: Path) -> None:
    (place,) = places(tmp_path, held("none"), held("bnb_int8", 0.25))
    assert [weights.name(row) for row in place.rows] == ["none", "bnb_int8"]
    assert weights.saved(place.rows[1]) == pytest.approx(90 / 160)
    heading, table = next(weights.tables([place], tmp_path))
    assert heading == "Memory of `gpt2` at 512 tokens" and "56.2\N{NO-BREAK SPACE}%" in str(table)
    (least, *_) = weights.sentences([place])
    assert "`bnb_int8` holds least" in least and "56.2\N{NO-BREAK SPACE}% less" in least


@pytest.mark.parametrize(("ratio", "word"), [(0.6, "faster"), (1.0, "no difference found"), (1.7, "slower")])
def test_speed_is_called_what_its_interval_says(tmp_path: Path, ratio: float, word: str) -> None:
    found = places(tmp_path, held("none"), held("smoothquant", 0.3, ratio))
    said = next(line for line in weights.sentences(found) if "decode step" in line)
    assert said == f"`gpt2` at 512 tokens, decode step beside plain weights: {word}: `smoothquant` ({ratio:.2f}×)."


@pytest.mark.parametrize(("loss", "word"), [(0.3, "worse"), (0.0, "no difference found")])
def test_quality_is_called_what_its_interval_says(tmp_path: Path, loss: float, word: str) -> None:
    found = places(tmp_path, read("none"), read("low_rank_int8", loss))
    recalled, text = weights.sentences(found)
    assert f"recall beside plain weights: {word}: `low_rank_int8`" in recalled
    assert f"{word}: `low_rank_int8`" in text


def test_what_saves_nothing_is_said_to(tmp_path: Path) -> None:
    found = places(tmp_path, held("none"), held("bnb_nf4", 0.1), held("odd"))
    assert "`odd` saved nothing" in weights.sentences(found)[0]


def test_what_was_not_measured_is_listed_with_what_would_help(tmp_path: Path) -> None:
    of = factory.cell("full", workload="weights_cost", level="system", model="gpt2", weights="bnb_int8")
    skipped = factory.make(of, status="skipped", reason="No module named 'bitsandbytes'", remedy="pip install it")
    found = places(tmp_path, held("none"), skipped)
    heading, table = list(weights.tables(found, tmp_path))[-1]
    assert heading == "Not measured, and why" and "pip install it" in str(table)
    assert len(weights.sentences(found)) == 0


def test_a_cache_beside_the_weights_is_named(tmp_path: Path) -> None:
    changed = read("bnb_nf4")
    both = changed.model_copy(update={"cell": changed.cell.model_copy(update={"strategy": "h2o"})})
    (place,) = places(tmp_path, both)
    assert weights.name(place.rows[0]) == "bnb_nf4 × h2o"


def test_the_report_has_the_section_and_its_figures(tmp_path: Path) -> None:
    records = [held("none"), held("bnb_int8", 0.25, 1.4), read("none"), read("bnb_int8", 0.01)]
    results = factory.store(records, tmp_path / "results")
    files = render(results, tmp_path / "reports")
    text = files["report.md"].decode()
    assert "## How weights are held" in text and "System level" not in text
    drawn = [name for name in files if "weights_cost-gpt2" in name or "weights_quality-tiny" in name]
    assert sorted(Path(name).suffix for name in drawn) == [".png", ".png", ".svg", ".svg"]
    assert not weight_plots.drawn(places(tmp_path / "one", held("none")))


def test_what_was_changed_is_named_and_what_was_switched_off_for_it_is_not(tmp_path: Path) -> None:
    (place,) = places(tmp_path, read("low_rank_int8+low_rank.rank=16+low_rank.energy=None"))
    assert weights.name(place.rows[0]) == "low_rank_int8, rank=16"
