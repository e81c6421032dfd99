"""The page of the trained architectures: every sentence and every line follows records and stories."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.findings import evidence, proportions, verdicts
from pipeline.findings import quantities as q
from pipeline.record import Record
from pipeline.report import reading, render
from pipeline.report.models import reach, stories, uptraining
from pipeline.report.models import sentences as model_sentences
from pipeline.report.models.architectures import Architecture, architectures
from pipeline.report.models.tables import details, tables
from tests.pipeline.report import factory
from tests.pipeline.report.models import trained

WINDOW = {"sliding_window": 64, "num_hidden_layers": 4}


def found_in(folder: Path, *records: Record) -> list[Architecture]:
    return architectures(evidence.load(factory.store(list(records), folder / "results")))


def everywhere(distance: float) -> bool:
    return True


def near(distance: float) -> bool:
    return distance <= 126


def reference(folder: Path) -> list[Record]:
    made = [trained.judged("mha", n, everywhere, models=folder / "models") for n in trained.QUALITY_LENGTHS]
    return made + [trained.timed("mha", n, 4096 * n, 1.0, folder / "models") for n in trained.COST_LENGTHS]


def line(tables_found: object, heading: str, name: str) -> str:
    table = next(str(table) for title, table in tables_found if title.startswith(heading))  # type: ignore[attr-defined]
    return next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))


def test_who_holds_least_follows_the_bytes_that_were_held(tmp_path: Path) -> None:
    level = [trained.timed("mamba2", n, 100 << 10) for n in trained.COST_LENGTHS]
    grouped = [trained.timed("gqa", n, 2048 * n) for n in trained.COST_LENGTHS]
    found = found_in(tmp_path, *reference(tmp_path), *level, *grouped)
    said = " ".join(model_sentences.sentences(found))
    assert f"`mamba2` holds least, 100{q.GLUE}KiB (0.3{q.GLUE}% of the reference's); then `gqa`" in said
    assert "What `mamba2` holds is the same from 512 to 8,192 tokens." in said
    assert [one.name for one in found] == ["mha", "gqa", "mamba2"]
    assert [one.held_per_token for one in found] == [4096, 2048, 0]

    more = [trained.timed("mamba2", n, 30_000 * n) for n in trained.COST_LENGTHS]
    altered = " ".join(model_sentences.sentences(found_in(tmp_path, *reference(tmp_path), *more, *grouped)))
    assert "`gqa` holds least" in altered and "the same from" not in altered


@pytest.mark.parametrize(("finds", "word"), [(everywhere, verdicts.NO_DIFFERENCE), (near, verdicts.WORSE)])
def test_recall_is_judged_by_item_against_the_reference(tmp_path: Path, finds: trained.Hits, word: str) -> None:
    found = found_in(tmp_path, *reference(tmp_path), trained.judged("sliding", 1024, finds))
    assert f"| {word} |" in line(tables(found), "Training, and quality", "sliding")
    assert f"{word.capitalize()}: `sliding`" in " ".join(model_sentences.sentences(found))


def test_the_time_of_the_reference_that_ran_beside_it_stands_by_each_ratio(tmp_path: Path) -> None:
    made = trained.timed("gqa", 8192, 1 << 20, 0.5)
    assert made.cost
    beside = made.cost.full.model_copy(update={"tpot_s_p50": 0.1, "ttft_s_p50": 4.0})
    own = made.cost.technique.model_copy(update={"tpot_s_p50": 0.05})
    slowed = made.model_copy(update={"cost": made.cost.model_copy(update={"technique": own, "full": beside})})
    found = found_in(tmp_path, *reference(tmp_path), slowed)
    assert f"| {q.seconds(0.05)} | {q.seconds(0.1)} | 0.50× " in line(tables(found), "Decode step at 8,192", "gqa")
    assert f"| {q.seconds(4.0)} | 1.01× " in line(tables(found), "First token at 8,192", "gqa")
    assert f"| {q.DASH} | {q.DASH} | reference |" in line(tables(found), "Decode step at 8,192", "mha")
    assert f"| {q.seconds(0.1)} | 0.50× " in line(details(found, tmp_path), "Times at every length", "gqa")


def test_a_skipped_architecture_is_listed_with_its_reason_and_has_no_quality(tmp_path: Path) -> None:
    records = [*reference(tmp_path), *trained.skipped("rwkv", "random weights"), trained.timed("rwkv", 512, 1 << 17)]
    found = found_in(tmp_path, *records)
    assert line(tables(found), "Not measured", "rwkv") == (
        "| `rwkv` | architecture at 256, 512 and 1,024 tokens | skipped | random weights | train it |"
    )
    assert line(tables(found), "Training, and quality", "rwkv").count("skipped") == 2
    assert "Without a quality, which is no bad quality: skipped: `rwkv`." in model_sentences.sentences(found)


def test_a_training_that_did_not_form_is_named_and_not_judged(tmp_path: Path) -> None:
    gone = "models/dilated: not trained within budget"
    records = [*reference(tmp_path), *trained.skipped("dilated", gone, tmp_path / "models")]
    phases = [{"seq_len": 32, "n_steps": 1000, "solved_at_step": None}]
    trained.tell(tmp_path / "models", "dilated", outcome="not trained within budget", phases=phases,
                 reason="recall did not form with 3 seeds")  # fmt: skip
    found = found_in(tmp_path, *records)
    assert "recall did not form with 3 seeds" in line(tables(found), "Not measured", "dilated")
    quality = line(tables(found), "Training, and quality", "dilated")
    assert "not formed" in quality and quality.count("not trained within budget") == 2


def test_lost_recall_is_said_from_the_distance_on_at_which_it_is_lost(tmp_path: Path) -> None:
    rows = [trained.judged("sliding", n, near, **WINDOW) for n in trained.QUALITY_LENGTHS]
    _, said = reach.sentences(found_in(tmp_path, *reference(tmp_path), *rows))
    assert "(its layers reach 252 tokens back)" in said
    lost = f"worse at 127 to 189, 190 to 252 and 253 and more tokens ({', '.join(['−1.00'] * 2)} and −1.00)"
    assert f"one fact, {lost}, no difference found elsewhere" in said

    rows = [trained.judged("sliding", n, everywhere, **WINDOW) for n in trained.QUALITY_LENGTHS]
    _, said = reach.sentences(found_in(tmp_path, *reference(tmp_path), *rows))
    assert "one fact, no difference found at any distance" in said


def test_few_items_at_a_distance_are_no_verdict() -> None:
    few = [reach.Item(distance=10, correct=0.0, correct_reference=1.0)] * 3
    (only,) = reach.bins(few, 63)
    assert (only.nearest, only.farthest, only.word) == (1, 63, verdicts.NO_DIFFERENCE)


def test_what_lies_beyond_the_trained_length_is_called_extrapolation(tmp_path: Path) -> None:
    rows = [trained.judged("sliding", n, near, **WINDOW) for n in (1024, 2048)]
    found = found_in(tmp_path, *reference(tmp_path), *rows)
    headings = [heading for heading, _ in reach.tables(found)]
    assert [heading.endswith("(extrapolation)") for heading in headings] == [False, False, True, True]
    assert "1,024 tokens" in next(iter(tables(found)))[0]
    told, _ = reach.sentences(found)
    assert "over all lengths within the trained one together" in told
    assert reach.sentences(found) == reach.sentences(found_in(tmp_path / "within", *reference(tmp_path), rows[0]))


def test_who_extrapolates_is_said_apart_and_changes_nothing_else(tmp_path: Path) -> None:
    both = [trained.judged("gqa", n, everywhere) for n in (1024, 2048)]
    far = [two_tasks(made) for made in (trained.judged("mha", 2048, near), both[1])]
    found = found_in(tmp_path, *reference(tmp_path), both[0], *far)
    within = found_in(tmp_path / "within", *reference(tmp_path), both[0])
    added = [said for said in model_sentences.sentences(found) if said not in model_sentences.sentences(within)]
    assert len(added) == 1 and added[0].startswith(
        "Recall at 2,048 tokens, beyond the trained length, mean over single"
    )
    assert "most in `gqa`, 1.00; `mha` 0.0" in added[0]
    headings = [heading for heading, _ in tables(within)]
    assert [heading for heading, _ in tables(found) if heading not in headings] == [
        "Recall at 2,048 tokens, beyond the trained length (extrapolation)"
    ]
    table = next(table for heading, table in tables(found) if heading not in headings)
    asked = [f"{task} at {n}" for task in ("Single needle", "Multi key 8") for n in ("1,024", "2,048")]
    assert [heading for heading, _ in table.columns] == ["Architecture", *asked]
    assert line(tables(found), "Recall at 2,048", "gqa").count("1.00 [") == len(asked)
    assert any("`extrapolation`" in said and "no verdict" in said for said in reading.how_to_read())


def two_tasks(made: Record) -> Record:
    """As the workload of extrapolation asks them."""
    assert made.quality
    return made.model_copy(update={"quality": made.quality.model_copy(update={"tasks": made.quality.tasks[:2]})})


@pytest.mark.parametrize(
    ("before", "after", "won", "lack"),
    [
        (0.30, 0.99, uptraining.SUPPORTED, verdicts.NO_DIFFERENCE),
        (0.30, 0.60, uptraining.SUPPORTED, verdicts.WORSE),
        (0.60, 0.60, verdicts.NO_DIFFERENCE, verdicts.WORSE),
        (0.90, 0.30, uptraining.CONTRADICTED, verdicts.WORSE),
    ],
)
def test_whether_uptraining_wins_recall_back(tmp_path: Path, before: float, after: float, won: str, lack: str) -> None:
    models = tmp_path / "models"
    trained.tell(models, "mha")
    trained.tell(models, "gqa")
    trained.tell_uptrained(models, "gqa_uptrained", before, after)
    others = [trained.timed(name, 512, 1 << 20, models=models) for name in ("gqa", "gqa_uptrained")]
    found = found_in(tmp_path, *reference(tmp_path), *others)
    (said,) = uptraining.sentences(found)
    assert f"That these steps win recall back: {won} (" in said
    assert f"Afterwards against `mha`: {lack} (" in said
    ((_, table),) = uptraining.tables(found)
    assert [row[0] for row in table.rows] == ["`mha`", "`gqa` from random weights", *["`gqa_uptrained`"] * 3]
    assert [row[1] for row in table.rows] == ["1,230", "1,230", "0", "60", "120"]


def test_steps_of_a_curve_count_from_the_start_of_the_training(tmp_path: Path) -> None:
    trained.tell(tmp_path, "mha")
    story = stories.read(str(tmp_path / "mha"))
    assert story is not None
    steps = [(phase, step) for phase, step, _ in story.measured()]
    assert steps[0] == (0, 20) and steps[49:51] == [(0, 1000), (1, 1020)] and steps[-1] == (2, 1230)
    assert story.tokens_per_cpu_s == 10_000


def test_a_corrupt_story_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / stories.FILE_NAME).write_text("{")
    with pytest.raises(ValueError, match=f"corrupt {tmp_path / stories.FILE_NAME}: .*") as error:
        stories.read(str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_interval_of_a_share_is_never_empty() -> None:
    all_hit = proportions.share(20, 20)
    assert all_hit.high == 1 and math.isclose(all_hit.low, 0.8389, abs_tol=1e-4)
    same = proportions.difference(all_hit, all_hit)
    assert same.low < 0 < same.high and same.estimate == 0


def test_architectures_have_a_section_and_are_in_no_table_of_techniques(tmp_path: Path) -> None:
    factory.store([factory.timed("full")], tmp_path / "results")
    without = render.render(tmp_path / "results", tmp_path / "reports")
    assert "## Trained architectures" not in without["report.md"].decode()
    models = tmp_path / "models"
    trained.tell(models, "mha")
    windows = [trained.judged("sliding", n, near, models=models, **WINDOW) for n in trained.QUALITY_LENGTHS]
    factory.store([*reference(tmp_path), *windows, *trained.skipped("rwkv", "random weights")], tmp_path / "results")
    files = render.render(tmp_path / "results", tmp_path / "reports")
    text = files["report.md"].decode()
    techniques, _, rest = text.partition("## Trained architectures")
    section, _, end = rest.partition("## An earlier study")
    assert "`sliding`" in section and "(1 technique and 3 architectures)" in techniques
    assert "sliding" not in techniques.partition("## What was run")[0]
    assert "sliding" not in techniques.partition("</details>")[2]
    assert "| random weights | train it |" in end
    drawn = {name for name in files if name.startswith("figures/model_")}
    kinds = ("bytes", "quality", "reach", "recall_curves", "text_curves")
    assert drawn == {f"figures/model_{kind}-model.{suffix}" for kind in kinds for suffix in ("png", "svg")}
