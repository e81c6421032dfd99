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


def low_rank(record: Record, whole_bytes: int, rank: int | None = None) -> Record:
    """The record of weights that are cut at a rank, or at a share of the squares; computed to hold `whole_bytes`."""
    cut = {"_target_": "strategies.system.low_rank_int8.LowRankInt8", "rank": rank, "energy": None if rank else 0.95}
    assert record.predicted is not None
    predicted = record.predicted.model_copy(update={"weight_bytes": whole_bytes})
    config = record.config | {"weights": {"name": "low_rank_int8", "transforms": {"low_rank": cut}}}
    return record.model_copy(update={"predicted": predicted, "config": config})


@pytest.mark.parametrize(("share", "is_cut"), [(0.25, False), (0.2, True)])
def test_a_matrix_that_no_rank_cuts_is_said_to_be_whole(tmp_path: Path, share: float, is_cut: bool) -> None:
    whole = 40_000_000 + 30_000_000
    found = places(tmp_path, held("none"), held("w8a8_naive", 0.25), low_rank(held("low_rank_int8", share), whole))
    said = [line for line in weights.sentences(found) if "no matrix is cut" in line]
    expected = (
        "`gpt2` at 512 tokens: no matrix is cut by `low_rank_int8`: factors of the rank asked for, which of random "
        "matrices is nearly full, would take no less than the matrix in 8 bits, so that as many bytes are held as by "
        "`w8a8_naive`."
    )
    assert said == ([] if is_cut else [expected])


def test_a_table_of_quality_says_what_is_held_for_it(tmp_path: Path) -> None:
    half = low_rank(read("low_rank_int8+low_rank.rank=16+low_rank.energy=None"), 1 << 19, rank=16)
    whole = low_rank(read("low_rank_int8+low_rank.rank=48+low_rank.energy=None"), 1 << 20, rank=48)
    (place,) = places(tmp_path, read("none"), half, whole, low_rank(read("low_rank_int8"), 1 << 20))
    _, table = next(weights.tables([place], tmp_path))
    held_by = {row[0].split("`")[1]: row[1] for row in table.rows}
    assert held_by["low_rank_int8, rank=16"] == "512\N{NO-BREAK SPACE}KiB"
    assert held_by["low_rank_int8, rank=48"] == "1.00\N{NO-BREAK SPACE}MiB"
    assert held_by["low_rank_int8"] == "≤ 1.00\N{NO-BREAK SPACE}MiB"  # its rank is the data's
    assert any("no matrix is cut by `low_rank_int8, rank=48`:" in line for line in weights.sentences([place]))


def test_the_reference_has_a_row_where_it_was_only_measured_beside_others(tmp_path: Path) -> None:
    alone = places(tmp_path / "alone", held("bnb_int8", 0.25), held("bnb_nf4", 0.1))
    for _, table in weights.tables(alone, tmp_path):
        assert [row[0].split("`")[1] for row in table.rows].count("none") == 1
        assert table.rows[0][0] == "`none`" and "reference" in table.rows[0]
    (_, memory), (_, time) = weights.tables(alone, tmp_path)
    assert memory.rows[0][1] == "153\N{NO-BREAK SPACE}MiB" and len(memory.rows[0]) == len(memory.columns)
    assert time.rows[0][1] == "902\N{NO-BREAK SPACE}ms" and len(time.rows[0]) == len(time.columns)
    beside = places(tmp_path / "beside", held("none"), held("bnb_int8", 0.25))
    assert all(len(table.rows) == 2 for _, table in weights.tables(beside, tmp_path))


def test_a_ratio_has_the_time_beside_it_that_it_is_to(tmp_path: Path) -> None:
    slow = held("smoothquant", 0.3, 1.5)
    assert slow.cost is not None
    full = slow.cost.full.model_copy(update={"tpot_s_p50": 0.033, "ttft_s_p50": 0.7})
    slow = slow.model_copy(update={"cost": slow.cost.model_copy(update={"full": full})})
    (place,) = places(tmp_path, held("none"), slow)
    _, time = list(weights.tables([place], tmp_path))[1]
    plain, changed = time.rows
    assert [heading for heading, _ in time.columns].count("Plain beside it") == 2
    assert changed[2] == "700\N{NO-BREAK SPACE}ms" and changed[6] == "33.0\N{NO-BREAK SPACE}ms"
    assert (plain[2], plain[6]) == ("–", "–")


def test_recall_is_written_as_fine_as_it_is_judged(tmp_path: Path) -> None:
    (place,) = places(tmp_path, read("none"), read("bnb_nf4", 0.01))
    _, table = next(weights.tables([place], tmp_path))
    plain, lossy = table.rows
    assert plain[2].startswith("1.000 [")
    assert lossy[2] == "0.990" and lossy[3].startswith("−0.010 [")
    said = next(line for line in weights.sentences([place]) if "recall beside" in line)
    assert "(−0.010)" in said


def test_keys_and_values_stand_once(tmp_path: Path) -> None:
    _, table = next(weights.tables(places(tmp_path, held("none")), tmp_path))
    assert [heading for heading, _ in table.columns if heading.startswith("KV")] == ["KV at most"]
