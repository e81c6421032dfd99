"""Time against quality: who is called faster without a loss follows from the records of both."""

from __future__ import annotations

from pathlib import Path

from pipeline.findings import evidence, verdicts
from pipeline.findings import quantities as q
from pipeline.record import Record
from pipeline.report.tokens import tradeoff
from tests.pipeline.report import factory


def both(folder: Path, records: list[Record]) -> list[list[tradeoff.Both]]:
    return [found for _, found in tradeoff.tradeoffs(evidence.load(factory.store(records, folder)))]


def records(ratio: float, loss: float) -> list[Record]:
    timed = [factory.timed("full", 1024, 1.0), factory.timed("tova", 1024, ratio), factory.timed("paged", 4096, 1.2)]
    return [*timed, factory.judged("full", 512), factory.judged("tova", 512, loss)]


def test_faster_without_a_loss_follows_from_the_records(tmp_path: Path) -> None:
    for folder, ratio, loss, said in (
        (
            "good",
            0.5,
            0.0,
            "Faster than the full cache with no loss of recall found, controls apart: `tova` (0.50×, +0.00).",
        ),
        ("slow", 1.5, 0.0, "Faster than the full cache with no loss of recall found, controls apart: none."),
        ("lossy", 0.5, 0.4, "Faster than the full cache with no loss of recall found, controls apart: none."),
    ):
        (found,) = both(tmp_path / folder, records(ratio, loss))
        assert tradeoff.sentences(found)[1] == said


def test_a_control_is_no_answer(tmp_path: Path) -> None:
    made = [factory.timed("oracle", 1024, 0.5), factory.judged("oracle", 512, 0.0), *records(1.5, 0.0)]
    (found,) = both(tmp_path, made)
    assert "oracle" in {one.name for one in found}
    assert tradeoff.sentences(found)[1].endswith("controls apart: none.")


def test_the_table_holds_every_technique_under_both_verdicts(tmp_path: Path) -> None:
    (found,) = both(tmp_path, records(0.5, 0.4))
    table = tradeoff.table(found)
    columns = [name for name, _ in table.columns]
    by_speed = {line[0]: dict(zip(columns, line, strict=True)) for line in table.rows}
    assert by_speed[verdicts.FASTER][f"Recall: {verdicts.WORSE}"] == "`tova`"
    assert by_speed[verdicts.NO_DIFFERENCE][f"Recall: {verdicts.NO_DIFFERENCE}"] == "`full`"
    assert by_speed[verdicts.FASTER][f"Recall: {verdicts.NO_DIFFERENCE}"] == q.DASH


def test_two_models_are_said(tmp_path: Path) -> None:
    (found,) = both(tmp_path, records(0.5, 0.0))
    assert tradeoff.title(found) == "Time against quality: decode steps on `bench`, recall on `tiny`"
    assert "of two models" in tradeoff.sentences(found)[0]


def test_there_is_nothing_to_trade_without_both(tmp_path: Path) -> None:
    assert both(tmp_path / "time", [factory.timed("full"), factory.timed("tova")]) == []
    assert both(tmp_path / "one", [factory.timed("full"), factory.judged("full")]) == []
