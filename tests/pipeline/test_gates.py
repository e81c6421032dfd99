import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.functional import one_hot

from pipeline import ROOT, corpus, gates, judgement, mechanisms, models, record, structure
from pipeline.config import Model
from pipeline.judgement import FILE_NAME, Gate, Judgement
from pipeline.record import Cell, Record
from pipeline.tasks import IGNORED, VOCAB_SIZE, recall_items
from tests.pipeline import small

TEXT = torch.randint(0, 1024, (20_000,), generator=torch.Generator().manual_seed(0))


def cell_record(status: str, level: str = "token", strategy: str = "full") -> Record:
    cell = Cell(
        level=level, model="tiny", strategy=strategy, weights="none", engine="ours", workload="standard", seq_len=512,
        batch=1, n_new_tokens=8, kv_budget=None, dtype="float32", device="cpu", seed=0,
    )  # fmt: skip
    return Record(
        cell=cell, status=status, reason="out of memory", fingerprint="f", config={}, environment={}, wall_s=1.0
    )


def written(results_dir, *, passed: bool, status: str) -> None:
    gate = Gate(name="single_needle", unit="accuracy", seq_len=512, value=0.5, bound=0.4, n=200, passed=passed)
    gates._write(results_dir / FILE_NAME, Judgement(model="tiny", weights_sha256=None, gates=[gate]))
    kept = cell_record(status)
    record.write(kept, record.path_of(kept.cell, results_dir, "machine"))


def test_unigram_loss_is_the_entropy_of_the_text():
    assert gates.unigram_nll(torch.tensor([3, 3, 5, 5])) == pytest.approx(math.log(2))
    assert gates.unigram_nll(torch.tensor([7, 7, 7])) == 0.0


def test_an_untrained_model_passes_no_gate():
    judged = gates.judge(small.model(torch.float32), TEXT, n_items=9)
    assert len(judged) == len(gates.RECALL_BOUNDS) + 1 and not any(gate.passed for gate in judged)


def test_recall_accuracy_counts_the_asked_answers_only():
    """A model that always gives one value is right as often as that value is asked for."""
    answers = recall_items("multi_query", 128, 40, gates.SEED, TEXT).answer
    value = int(answers[0, -1])

    class Constant(torch.nn.Module):
        def forward(self, ids: torch.Tensor, logits_to_keep: int, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=one_hot(torch.full((len(ids), logits_to_keep), value), VOCAB_SIZE))

    expected = float((answers == value).sum() / (answers != IGNORED).sum())
    assert gates.recall_accuracy(Constant(), "multi_query", 128, TEXT, 40) == pytest.approx(expected)


def test_check_passes_where_everything_passed(tmp_path):
    written(tmp_path, passed=True, status="ok")
    assert gates.main(["--check", "--results-dir", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("passed", "status", "named"),
    [
        (False, "ok", "gate single_needle at 512 tokens: 0.500, not at least 0.4"),
        (True, "error", "cell token/full/tiny-none-ours-standard-t512"),
    ],
)
def test_check_fails_and_names_what_failed(tmp_path, capsys, passed, status, named):
    written(tmp_path, passed=passed, status=status)
    assert gates.main(["--check", "--results-dir", str(tmp_path)]) == 1
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "strategy", "n_failed"),
    [
        ("token", "attention_sink+scorer.n_sinks=8", 0),
        ("token", "full", 1),
        ("benchmark", "dynamic", 1),
        ("ablation", "snapkv+encoding=int4", 1),
    ],
)
def test_stages_and_benchmarks_decide_and_what_was_tried_beside_them_does_not(tmp_path, level, strategy, n_failed):
    written(tmp_path, passed=True, status="ok")
    tried = cell_record("error", level, strategy)
    record.write(tried, record.path_of(tried.cell, tmp_path, "another machine"))
    assert len(gates.failures(tmp_path)) == n_failed


def test_a_skipped_cell_is_no_failure(tmp_path):
    written(tmp_path, passed=True, status="skipped")
    assert gates.failures(tmp_path) == []


def test_check_without_measured_gates_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gates.json: not there; first run: python -m pipeline.gates"):
        gates.failures(tmp_path)


@pytest.mark.slow
def test_the_committed_model_passes_every_gate():
    """On the first items of each kind; the stage `gates` asks all of them, and the next test reads what it found."""
    tiny = Model.model_validate(OmegaConf.to_container(OmegaConf.load(ROOT / "conf/model/tiny.yaml")))
    loaded = models.load(tiny, "float32", "cpu", gates.SEED)
    text = corpus.held_out_tokens(loaded.tokenizer_path)
    lab = mechanisms.Lab(loaded.model, text, n_items=40)
    judged = [*gates.judge(loaded.model, text, lab.n_items), *mechanisms.judge(lab), *structure.judge(lab)]
    failed = [gate for gate in judged if not gate.passed]
    assert not failed
    assert {gate.name for gate in judged} == {gate.name for gate in judgement.read(ROOT / "results").gates}


def test_every_committed_gate_was_passed_by_the_committed_model_with_items_enough():
    written = judgement.read(ROOT / "results")
    assert all(gate.passed for gate in written.gates)
    assert all(gate.n >= 200 for gate in written.gates if "a model with a sink" not in gate.name)  # streams of text
    assert written.weights_sha256 == models.file_sha256(models.folder_of("models/tiny") / models.WEIGHTS)


def test_what_was_judged_is_written_whole_and_nothing_beside_it(tmp_path):
    written(tmp_path, passed=True, status="ok")
    assert judgement.read(tmp_path).gates[0].name == "single_needle"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [FILE_NAME]
