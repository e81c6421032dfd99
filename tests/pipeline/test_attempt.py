import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from pipeline import ROOT, attempt, checkpoints, corpus, gates, models, train
from tests.pipeline.test_train import TEXT, TWO_PHASES, trained

NEVER = (
    "recipe.phases=[{seq_len: 32, n_steps: 2, batch: 4, gaps: 0, asked_twice: 0, ends_when_formed: false,"
    " mixture: ${recipe.mixture}}, {seq_len: 64, n_steps: 2, batch: 4, gaps: 0, asked_twice: 0,"
    " ends_when_formed: false, mixture: ${recipe.mixture}}]"
)
HALF = (
    "recipe.phases=[{seq_len: 64, n_steps: 2, batch: 4, gaps: 0, asked_twice: 0, ends_when_formed: false,"
    " mixture: ${recipe.mixture}}, {seq_len: 64, n_steps: 2, batch: 4, gaps: 0, asked_twice: 0,"
    " ends_when_formed: false, mixture: ${recipe.mixture}}]"
)
NO_TASKS_IN_THE_FIRST = NEVER.replace("mixture: ${recipe.mixture}}, {", "mixture: {repeats: 1.0}}, {")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Gates of four items that anything passes, noise for text, and a folder of its own for what is kept."""
    torch.set_num_threads(1)
    prepare(tmp_path, monkeypatch.setattr)


def prepare(folder, set_):
    tokenizer = Tokenizer.from_file(str(ROOT / "models/tiny/tokenizer.json"))
    set_(corpus, "training_text", lambda: (tokenizer, TEXT))
    judge = gates.judge
    set_(gates, "judge", lambda model, held_out: judge(model, held_out, n_items=4))
    set_(gates, "RECALL_BOUNDS", {("single_needle", 64): 0.0})
    set_(gates, "TEXT_BOUND", -100.0)
    set_(attempt, "KEPT", Path(folder) / "kept")
    set_(attempt, "KEPT_EVERY_S", 0.0)


def run(folder, *overrides):
    return train.main([*overrides, f"model.path={folder}", "tracking=disabled"])


def test_a_training_goes_on_from_its_state_as_if_nothing_had_been(tmp_path):
    whole, half, rest = trained(TWO_PHASES), train.configured([TWO_PHASES]), train.configured([TWO_PHASES])
    first, second = (attempt.Trainer(attempt.start(asked, 0), asked.recipe, TEXT, 0) for asked in (half, rest))
    for _ in first.steps():
        if first.n_done == 47:
            break
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.n_done == 47
    for _ in second.steps():
        pass
    assert second.curve == whole.curve and second.solved == whole.solved and second.n_tokens == whole.n_tokens
    wanted = whole.model.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in second.model.state_dict().items())


def test_a_training_that_was_killed_goes_on_and_ends_with_the_same_weights(tmp_path):
    """SIGKILL in the middle of a step, in a process of its own."""
    script = f"""
        import os, signal, sys
        from pipeline import trainer
        from tests.pipeline import test_attempt
        test_attempt.prepare({str(tmp_path)!r}, setattr)
        step = trainer.Trainer._step
        def killed(self, *given):
            if self.n_done == 45:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *given)
        trainer.Trainer._step = killed
        test_attempt.run({str(tmp_path / "cut")!r}, test_attempt.TWO_PHASES)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -9 and not (tmp_path / "cut").exists()
    (kept,) = (tmp_path / "kept").glob("*.pt")
    assert run(tmp_path / "cut", TWO_PHASES) == 0
    assert not kept.exists()
    assert run(tmp_path / "whole", TWO_PHASES) == 0
    cut, whole = (load_file(tmp_path / name / models.WEIGHTS) for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    stories = [checkpoints.story_in(tmp_path / name) or {} for name in ("cut", "whole")]
    assert stories[0]["curve"] == stories[1]["curve"] and stories[0]["cpu_s"] > 0


def test_recall_that_forms_with_no_seed_is_a_result_without_weights(tmp_path, capsys):
    asked = [NO_TASKS_IN_THE_FIRST, "recipe.accepted_when=formed", "n_seeds=2"]
    assert run(tmp_path / "tiny", *asked) == 0
    assert "seed 1 was not accepted: recall did not form" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [checkpoints.STORY]
    story = checkpoints.story_in(tmp_path / "tiny") or {}
    assert story["outcome"] == checkpoints.NOT_TRAINED and story["seed"] == 1
    assert [phase["n_steps"] for phase in story["phases"]] == [2]  # nothing follows a first phase without recall
    assert run(tmp_path / "tiny", *asked) == 0 and "is up to date" in capsys.readouterr().out
    spec = train.configured(asked).model.model_copy(update={"path": str(tmp_path / "tiny")})
    with pytest.raises(ValueError, match="not trained within budget, so it has no weights; valid: "):
        checkpoints.check(spec)


def test_what_starts_from_another_model_is_judged_before_between_and_after(tmp_path):
    asked = [HALF, "model=gqa_uptrained", "recipe=uptraining"]
    assert run(tmp_path / "gqa", *asked) == 0
    story = checkpoints.story_in(tmp_path / "gqa") or {}
    assert [milestone["n_steps"] for milestone in story["milestones"]] == [0, 2, 4]
    assert story["milestones"][-1]["gates"] == story["gates"]
    weights, parent = (load_file(folder / models.WEIGHTS) for folder in (tmp_path / "gqa", ROOT / "models/mha"))
    name = "model.layers.0.self_attn.k_proj.weight"
    pooled = parent[name].unflatten(0, (2, 2, -1)).mean(1).flatten(0, 1)
    assert weights[name].shape == pooled.shape
    assert (weights[name] - pooled).abs().max() < 0.05 * pooled.abs().max()  # two steps from where it started


def test_a_milestone_is_not_passed_by_where_it_was_judged_when_the_training_ended(tmp_path, monkeypatch):
    asked = [HALF, "model=gqa_uptrained", "recipe=uptraining"]
    judge, n_judged = gates.judge, 0

    def interrupted(model, held_out):
        nonlocal n_judged
        n_judged += 1
        if n_judged == 2:
            raise InterruptedError
        return judge(model, held_out)

    monkeypatch.setattr(gates, "judge", interrupted)
    with pytest.raises(InterruptedError):
        run(tmp_path / "gqa", *asked)
    assert run(tmp_path / "gqa", *asked) == 0
    story = checkpoints.story_in(tmp_path / "gqa") or {}
    assert [milestone["n_steps"] for milestone in story["milestones"]] == [0, 2, 4]
