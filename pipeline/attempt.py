"""One seed of one training: from its start, or from where it was killed, to a judged model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import ROOT, checkpoints, corpus, gates, hardware, models, shapes
from pipeline.config import Model
from pipeline.judgement import Gate
from pipeline.recipe import Training
from pipeline.tracking import TrainingTracker
from pipeline.trainer import Trainer

KEPT = ROOT / ".cache/training"
KEPT_EVERY_S = 60.0
SAID_EVERY = 100  # steps, where there is no terminal to draw a bar on


class Attempt:
    """What `run` leaves behind says how it went."""

    def __init__(self, training: Training, seed: int, tokenizer: Tokenizer, text: Tensor) -> None:
        self.training, self.seed, self.tokenizer, self.text = training, seed, tokenizer, text
        self.stamp = checkpoints.inputs(training)
        self.trainer = Trainer(start(training, seed), training.recipe, text, seed)
        self.milestones: list[dict[str, Any]] = []  # of what starts from another model: before, between and after
        self.gates: list[Gate] = []
        self.wall_s = self.cpu_s = 0.0

    @property
    def accepted(self) -> bool:
        match self.training.recipe.accepted_when:
            case "gates":
                return all(gate.passed for gate in self.gates)
            case "formed":
                return self.trainer.formed
        return True

    def run(self, tracker: TrainingTracker) -> None:
        self._restore()
        with self._followed(tracker) as say, self._timed() as keep:
            if not self.milestones:
                self._reach_milestone(0)
            for label in self.trainer.steps():
                say(label)
                self._reach_milestone(self.trainer.n_done)
                keep()  # after the milestone, which would be passed by for ever
        self._keep()
        if len(self.trainer.solved) == len(self.training.recipe.phases):
            self.gates = self._judged()
            gates.show(self.gates)
        tracker.judge(self.gates, self.accepted)

    def seconds_needed(self) -> float:
        """Of processors, for the whole recipe, by the second step of each phase on a model that is thrown away.

        Where the first phases alone take more than is allowed, the later ones are not tried.
        """
        needed_s = 0.0
        for phase in self.training.recipe.phases:
            recipe = self.training.recipe.model_copy(update={"phases": [phase.model_copy(update={"n_steps": 2})]})
            steps = Trainer(start(self.training, self.seed), recipe, self.text, self.seed).steps()
            next(steps)
            started = time.process_time()
            next(steps)
            needed_s += phase.n_steps * (time.process_time() - started)
            if needed_s > self.training.max_s:
                break
        return needed_s

    def story(self, why_not: str = "") -> dict[str, Any]:
        """Everything that says where a checkpoint came from, or `why_not` there is none."""
        training, trainer = self.training, self.trainer
        return {
            "name": training.model.name,
            "outcome": checkpoints.NOT_TRAINED if why_not else checkpoints.TRAINED,
            "reason": why_not,
            "inputs": self.stamp,
            "corpus_sha256": corpus.corpus_sha256(),
            "config": training.model.config,
            "n_parameters": sum(weight.numel() for weight in trainer.model.parameters()),
            "recipe": training.recipe.model_dump(),
            "n_threads": training.n_threads,
            "gates": [gate.model_dump() for gate in self.gates],
            "phases": trainer.solved,
            "milestones": self.milestones,
            "n_tokens": trainer.n_tokens,
            "curve": trainer.curve,
            "versions": hardware.versions(),
            "hardware_id": hardware.hardware_id(),
            "seed": self.seed,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }

    def forget(self) -> None:
        """What was kept for the case of a kill."""
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return KEPT / f"{self.training.model.name}-{self.seed}-{self.stamp[:16]}.pt"

    def _restore(self) -> None:
        if not self._path.is_file():
            return
        kept = torch.load(self._path, weights_only=True)
        self.trainer.restore(kept["trainer"])
        self.milestones, self.wall_s, self.cpu_s = kept["milestones"], kept["wall_s"], kept["cpu_s"]
        print(f"seed {self.seed} goes on after step {self.trainer.n_done}")

    def _keep(self) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".tmp")
        told = {"milestones": self.milestones, "wall_s": self.wall_s, "cpu_s": self.cpu_s}
        torch.save({"trainer": self.trainer.state(), **told}, partial)
        os.replace(partial, self._path)

    @contextmanager
    def _timed(self) -> Iterator[Any]:
        """Adds up the seconds, also of those runs that were killed; what it gives keeps the state once a minute."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()

        def count() -> None:
            nonlocal wall_s, cpu_s
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.process_time() - cpu_s
            wall_s, cpu_s = time.perf_counter(), time.process_time()

        def keep() -> None:
            if time.perf_counter() - wall_s > KEPT_EVERY_S:
                count()
                self._keep()

        yield keep
        count()

    @contextmanager
    def _followed(self, tracker: TrainingTracker) -> Iterator[Any]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        trainer, n_logged = self.trainer, len(self.trainer.curve)  # what was before a kill is in the run of then
        n_steps = sum(phase.n_steps for phase in self.training.recipe.phases)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
            bar = progress.add_task(f"seed {self.seed}", total=n_steps)

            def say(label: str) -> None:
                nonlocal n_logged
                progress.update(bar, completed=trainer.n_done, description=f"seed {self.seed}, {label}")
                if progress.disable and trainer.n_done % SAID_EVERY == 0:
                    print(f"seed {self.seed}, step {trainer.n_done} of {n_steps}, {label}", flush=True)
                for point in trainer.curve[n_logged:]:
                    tracker.log(trainer.n_done, point, trainer.optimizer.param_groups[0]["lr"])
                n_logged = len(trainer.curve)

            yield say

    def _reach_milestone(self, n_steps: int) -> None:
        ends = [0]
        for phase in self.training.recipe.phases:
            ends.append(ends[-1] + phase.n_steps)
        if self.training.recipe.starts_from is not None and n_steps in ends:
            judged = [gate.model_dump() for gate in self._judged()]
            self.milestones.append({"n_steps": n_steps, "gates": judged})

    def _judged(self) -> list[Gate]:
        was_training = self.trainer.model.training
        judged = gates.judge(self.trainer.model.eval(), corpus.encode_held_out(self.tokenizer))
        self.trainer.model.train(was_training)
        return judged


def start(training: Training, seed: int) -> PreTrainedModel:
    """Random weights, or those of a trained model with fewer KV heads. Raises ValueError where it was not trained."""
    config = shapes.config_of(training.model)
    if (begin := training.recipe.starts_from) is None:
        return shapes.random_model(config, torch.float32, "cpu", seed)
    parent = Model(
        name=begin.model, title="", source="checkpoint", path=str(checkpoints.folder_of(begin.model)),
        max_seq_len=None, hard_limit=False, config=None,
    )  # fmt: skip
    return instantiate(begin.convert)(models.load(parent, "float32", "cpu", seed).model, config.num_key_value_heads)
