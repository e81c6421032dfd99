"""Channels of activations that are far larger than all others, as large language models have and small ones do not.

Put in by an exact rescaling: a planted model computes what the original computes, in the classes of Transformers, and
can be saved and loaded as any other. What 8 bits lose on it, they lose to the outliers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Every norm of a block and all that read it.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "ln_1": ("attn.c_attn",),
    "ln_2": ("mlp.c_fc",),
}


@torch.no_grad()
def plant(model: PreTrainedModel, n_channels: int, factor: float, seed: int) -> PreTrainedModel:
    """A copy in which `n_channels` of what each norm of a block gives are `factor` times as large.

    Chosen at random, the same in all blocks as in large models; the columns that read them are as much smaller. For
    blocks like Llama's and GPT-2's. Raises ValueError where a channel is not there or a block has no such norm.
    """
    width = model.config.hidden_size
    if not 0 < n_channels <= width:
        raise ValueError(f"n_channels={n_channels}: the model has {width}; valid: 1 … {width}")
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randperm(width, generator=generator)[:n_channels]
    planted = copy.deepcopy(model)
    norms = [(block, name) for block in planted.modules() for name in READERS if hasattr(block, name)]
    if not norms:
        raise ValueError(f"model={type(model).__name__}: no block with norms that we know; valid: Llama's or GPT-2's")
    for block, name in norms:
        norm: Any = getattr(block, name)
        norm.weight[channels] *= factor
        if getattr(norm, "bias", None) is not None:
            norm.bias[channels] *= factor
        for reader in READERS[name]:
            _columns(block.get_submodule(reader))[:, channels] /= factor
    return planted


def _columns(linear: Any) -> Tensor:
    """Its weight [n_out, n_in], a view."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


@torch.no_grad()
def nll(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Mean loss in nats per token of each window [N, T + 1] → [N] float64."""
    logits = model(windows[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.transpose(1, 2).float(), windows[:, 1:], reduction="none")
    return losses.double().mean(1)
