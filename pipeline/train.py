"""Train an embedded model from scratch: `python -m pipeline.train model=tiny`.

Seeds are tried in turn until every gate of `pipeline.gates` passes, and only then is the checkpoint replaced. The same
seed, number of threads and versions give the same weights on one machine; other machines may round differently. Where
the checkpoint already comes from this code and these options nothing is trained; delete its folder to train it anyway.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline import fingerprint, hardware, models, shapes, tracking
from pipeline.refusals import CONF, refusals

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from pipeline.judgement import Gate
    from pipeline.recipe import Training
    from pipeline.tracking import TrainingTracker
    from pipeline.trainer import Trainer

USAGE = """usage: python -m pipeline.train [model=NAME] [seed=N] [n_seeds=N] [n_threads=N] [recipe.FIELD=VALUE ...]

Trains an embedded model from scratch and writes its checkpoint; conf/train.yaml holds the recipe."""
STORY = "training.json"
# Saying errors, hashing, loading, judging and following have no part in the weights.
NO_PART = ("refusals", "fingerprint", "models", "gates", "tracking")


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    with refusals():
        training = configured(arguments)
        config = shapes.config_of(training.model)
    if is_up_to_date(training):
        print(f"{training.model.path} is up to date")
        return 0
    with refusals():
        tracking.check(training.tracking)
    return train(training, config)


def configured(overrides: list[str]) -> Training:
    """The composed and checked configuration. Raises ValueError or Hydra's own errors."""
    from pipeline.recipe import Training

    with initialize_config_dir(str(CONF), version_base="1.3"):
        content = OmegaConf.to_container(compose("train", overrides), resolve=True)
    return Training.of(content)


def inputs(training: Training) -> str:
    """Hash of what the weights are made of: code without comments and docstrings, recipe, shape, seed, threads."""
    leave_out = {*fingerprint.BY_VALUE, *(f"pipeline.{name}" for name in NO_PART)}
    asked = training.model_dump(include={"recipe": True, "model": {"config"}, "seed": True, "n_threads": True})
    return fingerprint.digest(
        {"asked": asked, "code": fingerprint.code_hashes(["pipeline.train"], leave_out=leave_out)}
    )


def is_up_to_date(training: Training) -> bool:
    """The checkpoint is the one that this very training wrote."""
    folder = models.folder_of(training.model.path or "")
    if not (folder / STORY).is_file() or not (folder / models.WEIGHTS).is_file():
        return False
    story = json.loads((folder / STORY).read_text())
    made_here = story.get("inputs") == inputs(training)
    return made_here and story["weights_sha256"] == models.file_sha256(folder / models.WEIGHTS)


def train(training: Training, config: PreTrainedConfig) -> int:
    """0 when a seed passed every gate; 1, with the old checkpoint untouched, when none did."""
    import torch

    from pipeline import corpus

    torch.set_num_threads(training.n_threads)
    tokenizer, text = corpus.training_text()
    for seed in range(training.seed, training.seed + training.n_seeds):
        if _attempt(training, config, seed, tokenizer, text):
            print(f"seed {seed} passed every gate; checkpoint in {models.folder_of(training.model.path or '')}")
            return 0
        print(f"seed {seed} failed a gate", file=sys.stderr)
    print(f"no seed passed; {training.model.path} is as it was", file=sys.stderr)
    return 1


def _attempt(training: Training, config: PreTrainedConfig, seed: int, tokenizer: Tokenizer, text: Tensor) -> bool:
    """Train one seed, judge it, and save it if it passed."""
    import torch

    from pipeline import corpus, gates

    config_of_run = training.model_dump(exclude={"tracking"})
    with tracking.track_training(training.tracking, training.model.name, seed, config_of_run) as tracker:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        model = shapes.random_model(config, torch.float32, "cpu", seed)
        trainer = _fit(model, training, text, seed, tracker)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        judged = gates.judge(model.eval(), corpus.encode_held_out(tokenizer))
        gates.show(judged)
        tracker.judge(judged)
        passed = all(gate.passed for gate in judged)
        if passed:
            folder = models.folder_of(training.model.path or "")
            story = _story(training, trainer, judged) | {"seed": seed, "wall_s": wall_s, "cpu_s": cpu_s}
            save(model, tokenizer.to_str(pretty=True), story, folder)
            tracker.attach(folder / STORY)
    return passed


def _fit(model: PreTrainedModel, training: Training, text: Tensor, seed: int, tracker: TrainingTracker) -> Trainer:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.trainer import Trainer

    trainer = Trainer(model, training.recipe, text, seed)
    n_steps = sum(phase.n_steps for phase in training.recipe.phases)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar, n_logged = progress.add_task(f"seed {seed}", total=n_steps), 0

        def report(done: int, label: str) -> None:
            nonlocal n_logged
            progress.update(bar, completed=done, description=f"seed {seed}, {label}")
            for point in trainer.curve[n_logged:]:
                tracker.log(done, point, trainer.optimizer.param_groups[0]["lr"])
            n_logged = len(trainer.curve)

        trainer.run(report)
    return trainer


def _story(training: Training, trainer: Trainer, judged: list[Gate]) -> dict[str, Any]:
    """Everything that says where a checkpoint came from."""
    from pipeline import corpus

    return {
        "name": training.model.name,
        "inputs": inputs(training),
        "corpus_sha256": corpus.corpus_sha256(),
        "recipe": training.recipe.model_dump(),
        "n_threads": training.n_threads,
        "gates": [gate.model_dump() for gate in judged],
        "phases": trainer.solved,
        "n_tokens": trainer.n_tokens,
        "curve": trainer.curve,
        "versions": hardware.versions(),
    }


def save(model: PreTrainedModel, tokenizer: str, story: dict[str, Any], folder: Path) -> None:
    """Write the whole checkpoint beside `folder`, then put it in its place: never half of one and half of another."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    with models.quiet():
        model.save_pretrained(partial)
    (partial / models.WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
    (partial / "tokenizer.json").write_text(tokenizer)
    story = {**story, "weights_sha256": models.file_sha256(partial / models.WEIGHTS)}
    (partial / STORY).write_text(json.dumps(story, indent=1) + "\n")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
