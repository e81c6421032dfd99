"""The weight matrices of a model that can be held in another way: those of its blocks, never the head or a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Linear = nn.Linear | Conv1D


def linears(model: PreTrainedModel) -> dict[str, Linear]:
    """By name, in the order of the model. Raises ValueError where there are none left, or were never any."""
    head = model.get_output_embeddings()
    found: dict[str, Linear] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.is_floating_point()
    }
    if not found:
        raise ValueError(f"model={type(model).__name__}: no layer with plain weights; valid: a model whose weights no "
                         "other transform holds yet")  # fmt: skip
    return found


def matrix(linear: Linear) -> Tensor:
    """Its weight [n_out, n_in]: a view, transposed where the model is GPT-2."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def replace(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    """Put `module` where `name` was."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


@torch.no_grad()
def observe(model: PreTrainedModel, ids: Tensor, look: Callable[[str, Tensor], None]) -> None:
    """Show `look` the name of every linear layer and what goes into it [B, T, n_in], in one forward pass."""

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: look(name, inputs[0])

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears(model).items()]
    try:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
