"""The text that quality is measured on: the standard library's, a file of the user's, or a data set."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pandas as pd
import pytest

from pipeline import ROOT, corpus, fingerprint, record, text
from tests.pipeline import checkpoints

TOKENIZER = ROOT / "models/tiny/tokenizer.json"
STORY = "".join(f"In chapter {n} the travellers reached a village and rested for {n} days.\n" for n in range(2000))
STREAMS = (
    "profile=smoke",
    "profile.n_threads=1",
    "tracking=disabled",
    "workload=quality",
    "workload.tasks=[]",
    "workload.seq_len=64",
)


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "notes" / "story.txt"
    path.parent.mkdir()
    path.write_text(STORY, encoding="utf-8")
    return path


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A folder of parquet files as the hub serves them; nothing of it may ask a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "stories"
    folder.mkdir()
    pd.DataFrame({"text": STORY.splitlines(), "id": range(2000)}).to_parquet(folder / "test.parquet")
    pd.DataFrame({"text": ["one", "two"], "id": [0, 1]}).to_parquet(folder / "validation.parquet")
    text._read_dataset.cache_clear()
    return folder


def test_the_default_is_the_held_out_text_in_the_models_own_tokens():
    found = text.tokenized(None, TOKENIZER)
    assert found.source == text.DEFAULT_SOURCE and found.sha256 == corpus.corpus_sha256()
    assert found.tokens.equal(corpus.held_out_tokens(TOKENIZER))


def test_a_file_is_read_as_it_is_and_named_by_what_it_holds(story):
    found = text.tokenized(str(story), TOKENIZER)
    assert text.tokenizer_at(TOKENIZER).decode(found.tokens.tolist()) == STORY
    assert (found.source, found.sha256) == (str(story), text.sha256(str(story)))
    moved = story.rename(story.parent / "moved")
    assert text.sha256(str(moved)) == found.sha256
    moved.write_text(STORY + "The end.")
    assert text.sha256(str(moved)) != found.sha256


def test_what_follows_enough_text_is_never_read(story):
    story.write_text(STORY * 10)
    assert text.content(str(story)) == (STORY * 10)[: text.N_CHARACTERS]
    before = text.sha256(str(story))
    story.write_text(STORY * 11)
    assert text.sha256(str(story)) == before


def test_truncation_that_a_tokenizer_was_trained_with_does_not_shorten_the_text(story, tmp_path):
    tokenizer = checkpoints.byte_level()
    short = type(tokenizer).from_str(tokenizer.to_str())
    short.enable_truncation(512)
    short.save(str(tmp_path / "tokenizer.json"))
    assert len(text.tokenized(str(story), tmp_path / "tokenizer.json").tokens) > 10_000


def test_a_data_set_is_streamed_row_by_row(dataset):
    assert text.content(str(dataset)) == STORY
    assert text.content(f"{dataset}::validation") == "one\ntwo\n"


def test_a_data_set_is_read_no_further_than_needed(dataset, monkeypatch):
    monkeypatch.setattr(text, "N_CHARACTERS", 100)
    assert text.content(str(dataset)) == STORY[:100]
    assert len(list(text._rows(str(dataset), None, "test"))) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("", None),
        (":other", "BuilderConfig 'other' not found"),
        ("::nothing", "Bad split: nothing"),
    ],
)
def test_a_part_that_a_data_set_does_not_have_is_refused(dataset, change, why):
    if why is None:
        (dataset / "test.parquet").unlink()
        why = "Bad split: test"
    with pytest.raises(ValueError, match=rf"^workload.text={dataset}{change}: .*{why}.*; valid: ") as refusal:
        text.content(f"{dataset}{change}")
    assert "\n" not in str(refusal.value)


def test_a_data_set_without_text_is_refused(dataset):
    for file in dataset.iterdir():
        pd.DataFrame({"story": ["one"]}).to_parquet(file)
    with pytest.raises(ValueError, match=r"columns are story; valid: .*column `text`"):
        text.content(str(dataset))


def test_a_data_set_that_brings_code_is_refused_and_does_not_run(dataset):
    for file in dataset.iterdir():
        file.unlink()
    (dataset / f"{dataset.name}.py").write_text(f"open({str(dataset / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"^workload.text=.*; valid: "):
        text.content(str(dataset))
    assert not (dataset / "ran").exists()


def test_without_the_package_a_data_set_is_refused_with_its_remedy(experiment, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^workload.text=org/name:config:test: .* first pip install datasets$"):
        experiment(*STREAMS, "workload.text=org/name:config:test")


BAD_TEXT = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "not UTF-8": (lambda path: path.write_bytes("Größe".encode("latin-1") * 1000), "not UTF-8"),
    "empty": (lambda path: path.write_text(" \n"), "holds no text"),
    "too short": (lambda path: path.write_text("Once upon a time.\n"), "too few for 2 streams of 65"),
}


@pytest.mark.parametrize(("damage", "named"), BAD_TEXT.values(), ids=BAD_TEXT)
def test_a_text_that_cannot_be_used_is_refused_in_one_line_before_any_work(main, story, tmp_path, damage, named):
    damage(story)
    outcome = main(*STREAMS, f"workload.text={story}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"workload.text={story}: ") and outcome.err.count("\n") == 1
    assert named in outcome.err and "; valid: " in outcome.err
    assert not list((tmp_path / "results").rglob("*.json"))


def test_the_embedded_model_is_measured_on_a_users_text_and_the_record_says_so(main, story, tmp_path):
    command = (*STREAMS, "workload.tasks=[single_needle]", "strategy=sliding_window", f"workload.text={story}")
    assert main(*command).code == 0
    (measured,) = record.read_all(tmp_path / "results")
    assert measured.status == "ok", measured.reason
    assert measured.cell.workload == "quality@notes--story.txt"
    assert measured.quality.text_source == str(story) and measured.quality.text_sha256 == text.sha256(str(story))
    assert "already measured" in main(*command).err
    story.write_text(STORY.upper())
    assert "already measured" not in main(*command).err
    assert record.read_all(tmp_path / "results")[0].quality.text.nll != measured.quality.text.nll


def test_a_model_of_the_users_is_measured_on_a_data_set(main, dataset, tmp_path):
    folder = checkpoints.save("llama", tmp_path / "llama")
    command = (*STREAMS, "model=hub", f"model.path={folder}", f"workload.text={dataset}::test")
    assert main(*command, "workload.tasks=[single_needle]").code == 0
    (measured,) = record.read_all(tmp_path / "results")
    assert measured.status == "ok", measured.reason
    assert measured.quality.text_sha256 == text.sha256(f"{dataset}::test") == text.sha256(str(dataset))


def test_the_content_is_part_of_the_fingerprint_where_quality_is_measured(experiment, story):
    def of(*overrides: str) -> str:
        this = experiment(*STREAMS, f"workload.text={story}", *overrides)
        return fingerprint.fingerprint(this.resolved, this.cells()[0], {})

    before, cost_before = of(), of("workload.measure=[cost]")
    assert before == of()
    story.write_text(STORY.upper())
    assert of() != before and of("workload.measure=[cost]") == cost_before


def test_checking_a_text_imports_nothing_heavy(story):
    code = (
        f"import sys; from pipeline import text; text.check({str(story)!r}); text.check('org/name')\n"
        "sys.exit(', '.join({'torch', 'datasets', 'pandas', 'tokenizers'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
