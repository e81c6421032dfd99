"""Train embedded models from scratch: `python -m pipeline.train model=tiny`, or several side by side.

Seeds are tried in turn until one is accepted as the recipe says, and only then is the checkpoint replaced. The same
seed, number of threads and versions give the same weights on one machine; other machines may round differently. Where
the checkpoint already comes from this code and these options nothing is trained; delete its folder to train it anyway.
A training that was killed goes on where it was a minute before.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline import checkpoints, hardware, models, shapes, tracking
from pipeline.refusals import CONF, refusals

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.attempt import Attempt
    from pipeline.recipe import Training

USAGE = """usage: python -m pipeline.train [model=NAME[,NAME ...]] [recipe=NAME] [seed=N] [n_seeds=N] [n_threads=N]
                                [recipe.FIELD=VALUE ...]

Trains embedded models and writes their checkpoints; conf/recipe says how. Several models are trained side by side, one
process for each `n_threads` cores."""


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    with refusals(config_name="train"):
        jobs = split(arguments)
        asked = [configured(job) for job in jobs]
        for training in asked:
            shapes.config_of(training.model)
            tracking.check(training.tracking)
    outdated = [job for job, training in zip(jobs, asked, strict=True) if not _is_up_to_date(training)]
    if len(jobs) > 1:
        return side_by_side(outdated, asked[0].n_threads)
    return train(asked[0]) if outdated else 0


def split(overrides: list[str]) -> list[list[str]]:
    """The overrides of each model: `model=a,b` asks for two."""
    names = [given.removeprefix("model=") for given in overrides if given.startswith("model=")]
    others = [given for given in overrides if not given.startswith("model=")]
    return [[*others, f"model={name}"] for name in names[-1].split(",")] if names else [others]


def configured(overrides: list[str]) -> Training:
    """The composed and checked configuration. Raises ValueError or Hydra's own errors."""
    from pipeline.recipe import Training

    with initialize_config_dir(str(CONF), version_base="1.3"):
        content = OmegaConf.to_container(compose("train", overrides), resolve=True)
    return Training.of(content)


def side_by_side(jobs: list[list[str]], n_threads: int) -> int:
    """One process for each, as many at a time as there are cores for; 1 when any of them failed."""
    n_at_once = max(hardware.n_usable_cores() // n_threads, 1)
    with ThreadPoolExecutor(n_at_once) as pool:
        return max(pool.map(_in_a_process, jobs), default=0)


def train(training: Training) -> int:
    """0 when a seed was accepted, or when none was and that is the result, see `_give_up`; 1, with the old checkpoint
    untouched, when none passed its gates.
    """
    import torch

    from pipeline import corpus
    from pipeline.attempt import Attempt

    torch.set_num_threads(training.n_threads)
    tokenizer, text = corpus.training_text()
    folder = models.folder_of(training.model.path or "")
    attempt = Attempt(training, training.seed, tokenizer, text)
    if (needed_s := attempt.seconds_needed()) > training.max_s:
        why = f"one seed would take at least {needed_s / 60:,.0f} min of a core, allowed are {training.max_s / 60:,.0f}"
        return _give_up(attempt, why, folder)
    for seed in range(training.seed, training.seed + training.n_seeds):
        attempt = Attempt(training, seed, tokenizer, text)
        config_of_run = training.model_dump(exclude={"tracking"})
        with tracking.track_training(training.tracking, training.model.name, seed, config_of_run) as tracker:
            attempt.run(tracker)
            if attempt.accepted:
                checkpoints.save(attempt.trainer.model, tokenizer.to_str(pretty=True), attempt.story(), folder)
                tracker.attach(folder / checkpoints.STORY)
                attempt.forget()
                print(f"seed {seed} was accepted; checkpoint in {folder}")
                return 0
        print(f"seed {seed} was not accepted: {_why_not(training)}", file=sys.stderr)
    if training.recipe.accepted_when == "formed":
        return _give_up(attempt, f"recall did not form with {training.n_seeds} seeds", folder)
    print(f"no seed was accepted; {training.model.path} is as it was", file=sys.stderr)
    return 1


def _give_up(attempt: Attempt, why: str, folder: Path) -> int:
    """That an architecture cannot be trained here is a result too, and 0; but not where there are weights already."""
    if (folder / models.WEIGHTS).is_file():
        print(f"{why}; {folder} is as it was", file=sys.stderr)
        return 1
    checkpoints.save(None, "", attempt.story(why), folder)
    print(f"{checkpoints.NOT_TRAINED}: {why}; {folder / checkpoints.STORY} says so")
    return 0


def _why_not(training: Training) -> str:
    return "it failed a gate" if training.recipe.accepted_when == "gates" else "recall did not form"


def _is_up_to_date(training: Training) -> bool:
    if up_to_date := checkpoints.is_up_to_date(training):
        print(f"{training.model.path} is up to date")
    return up_to_date


def _in_a_process(job: list[str]) -> int:
    name = job[-1].removeprefix("model=")
    command = [sys.executable, "-m", "pipeline.train", *job]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(f"{name}: {line}", end="", flush=True)
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
