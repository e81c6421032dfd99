"""The training loop: phases of growing context, one AdamW, a constant and then a cosine learning rate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline import batches
from pipeline.batches import GROUPS, Batch
from pipeline.recipe import Phase, Recipe

CURVE_STEPS = 20
MEMORY = 0.95  # of the running accuracy, per batch
TOLD = ("curve", "solved", "n_tokens", "_step_of_phase", "_accuracy", "_solved_at")


class Trainer:
    """One seed of one recipe; `curve`, `solved` and `n_tokens` say how it went. Killed, it goes on from a `state`."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, text: Tensor, seed: int) -> None:
        self.model, self.recipe, self.text = model.train(), recipe, text
        self.rng = np.random.default_rng(seed)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self.curve: list[dict[str, float]] = []
        self.solved: list[dict[str, int | None]] = []  # of the phases that are over
        self.n_tokens = 0
        self._start_phase()

    @property
    def formed(self) -> bool:
        """Recall has, in the first phase."""
        return bool(self.solved) and self.solved[0]["solved_at_step"] is not None

    @property
    def n_done(self) -> int:
        """Steps, in all phases."""
        return self._step_of_phase + sum(phase["n_steps"] or 0 for phase in self.solved)

    def steps(self) -> Iterator[str]:
        """Train on, and say after every step what goes on. Where recall had to form and did not, nothing follows."""
        for index in range(len(self.solved), len(self.recipe.phases)):
            if self.recipe.accepted_when == "formed" and index > 0 and not self.formed:
                return
            yield from self._phase(index)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; taken between two steps."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "told": {name: getattr(self, name) for name in TOLD},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        for name in TOLD:
            setattr(self, name, state["told"][name])

    def _start_phase(self) -> None:
        self._step_of_phase, self._accuracy = 0, 0.0
        self._solved_at: int | None = None

    def _phase(self, index: int) -> Iterator[str]:
        phase = self.recipe.phases[index]
        while self._step_of_phase < phase.n_steps and not (phase.ends_when_formed and self._solved_at):
            self._step_of_phase += 1
            self._one_step(phase, index)
            yield f"{phase.seq_len} tokens, recall {self._accuracy:.2f}"
        ended = {"seq_len": phase.seq_len, "n_steps": self._step_of_phase, "solved_at_step": self._solved_at}
        self.solved.append(ended)
        self._start_phase()

    def _one_step(self, phase: Phase, index: int) -> None:
        step = self._step_of_phase
        batch = batches.draw(phase, self.recipe.max_gap, self.text, self.rng)
        measured = self._step(batch, self._learning_rate(index, step))
        self._accuracy = MEMORY * self._accuracy + (1 - MEMORY) * measured.get("accuracy", self._accuracy)
        if step % CURVE_STEPS == 0:
            point = {"seq_len": phase.seq_len, "step": step, "running_accuracy": self._accuracy}
            self.curve.append(point | measured)
        if self._solved_at is None and self._accuracy >= self.recipe.formed_accuracy:
            self._solved_at = step

    def _learning_rate(self, index: int, step: int) -> float:
        """Warm-up and then constant in the first phase; one cosine over all later ones."""
        if index == 0:
            return self.recipe.learning_rate * min(1.0, step / self.recipe.n_warmup_steps)
        steps = [phase.n_steps for phase in self.recipe.phases[1:]]
        done = (sum(steps[: index - 1]) + step) / sum(steps)
        final = self.recipe.final_share
        return self.recipe.learning_rate * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)

    def _step(self, batch: Batch, learning_rate: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # Without the mask of ones, a gap in the positions would be taken for the border of a packed document.
        mask = torch.ones_like(batch.tokens)
        hidden_BTD = self.model.base_model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        asked = batch.targets >= 0  # words cost as much as the rest of so small a model: only where one is to be said
        logits, targets, groups = self._head(hidden_BTD[asked]), batch.targets[asked], batch.groups[asked]
        losses = group_losses(logits, targets, groups)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([self.recipe.loss_weights[name] * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.n_tokens += batch.tokens.numel()
        return {f"{name}_nll": round(loss.item(), 4) for name, loss in losses.items()} | _accuracy(
            logits, targets, groups
        )

    def _head(self, hidden_ND: Tensor) -> Tensor:
        """[N, V]; what an embedded model does to its last hidden state."""
        head: Any = self.model.get_output_embeddings()
        return head(hidden_ND)


def group_losses(logits: Tensor, targets: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Mean loss in nats of every group that occurs; logits [N, V], targets and groups [N]."""
    losses = cross_entropy(logits, targets, reduction="none")
    masks = {name: groups == index for index, name in enumerate(GROUPS)}
    return {name: losses[mask].mean() for name, mask in masks.items() if mask.any()}


def _accuracy(logits: Tensor, targets: Tensor, groups: Tensor) -> dict[str, float]:
    answers = groups == GROUPS.index("answer")
    if not answers.any():
        return {}
    return {"accuracy": round((logits[answers].argmax(-1) == targets[answers]).double().mean().item(), 4)}
