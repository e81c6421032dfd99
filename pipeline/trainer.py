"""The training loop: phases of growing context, one AdamW, a constant and then a cosine learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

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


class Trainer:
    """One seed of one recipe; `curve`, `solved` and `n_tokens` say how it went."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, text: Tensor, seed: int) -> None:
        self.model, self.recipe, self.text = model.train(), recipe, text
        self.rng = np.random.default_rng(seed)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self.curve: list[dict[str, float]] = []
        self.solved: list[dict[str, int | None]] = []
        self.n_tokens = 0

    def run(self, report: Callable[[int, str], None]) -> None:
        """`report(steps done, what goes on)` is called after every step, with the curve as far as it goes."""
        n_before = 0
        for index, phase in enumerate(self.recipe.phases):
            self._phase(phase, index, n_before, report)
            n_before += phase.n_steps

    def _phase(self, phase: Phase, index: int, n_before: int, report: Callable[[int, str], None]) -> None:
        accuracy, solved = 0.0, None
        for step in range(1, phase.n_steps + 1):
            batch = batches.draw(phase, self.recipe.max_gap, self.text, self.rng)
            measured = self._step(batch, self._learning_rate(index, step))
            accuracy = MEMORY * accuracy + (1 - MEMORY) * measured.get("accuracy", accuracy)
            if step % CURVE_STEPS == 0:
                self.curve.append({"seq_len": phase.seq_len, "step": step, "running_accuracy": accuracy, **measured})
            report(n_before + step, f"{phase.seq_len} tokens, recall {accuracy:.2f}")
            if solved is None and accuracy >= self.recipe.formed_accuracy:
                solved = step
                if phase.ends_when_formed:
                    break
        self.solved.append({"seq_len": phase.seq_len, "n_steps": step, "solved_at_step": solved})

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
        logits = self.model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=mask, use_cache=False
        ).logits
        losses = group_losses(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([self.recipe.loss_weights[name] * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.n_tokens += batch.tokens.numel()
        return {f"{name}_nll": round(loss.item(), 4) for name, loss in losses.items()} | _accuracy(logits, batch)


def group_losses(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Mean loss in nats of every group that occurs in the batch; logits [B, T, V]."""
    losses = cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
    masks = {name: (batch.targets >= 0) & (batch.groups == index) for index, name in enumerate(GROUPS)}
    return {name: losses[mask].mean() for name, mask in masks.items() if mask.any()}


def _accuracy(logits: Tensor, batch: Batch) -> dict[str, float]:
    asked = (batch.targets >= 0) & (batch.groups == GROUPS.index("answer"))
    if not asked.any():
        return {}
    return {"accuracy": round((logits[asked].argmax(-1) == batch.targets[asked]).double().mean().item(), 4)}
