"""From many KV heads to few: the keys and values of a group are averaged (Ainslie et al. 2023, arXiv:2305.13245).

What comes out answers worse than what went in until it has been trained on; the paper spends 5 % of the original
training on that, and finds the mean better than one head of each group or a fresh start. Keys and values are linear in
the weights, and the rotation is the same for all heads, so the mean of the weights gives the mean of the keys and
values. Norms of single heads stay as they are.
Shapes: G KV heads afterwards, R heads averaged into each.
"""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

PROJECTION = re.compile(r"\.[kv]_proj\.(weight|bias)$")


def pool_kv_heads(model: PreTrainedModel, n_kv_heads: int) -> PreTrainedModel:
    """A new model with `n_kv_heads` in every layer; its other weights are copies, and `model` stays as it is.

    Raises ValueError for a model without separate projections of keys and values, for one with weights that span
    several KV heads otherwise, and for heads that do not make equal groups.
    """
    weights = model.state_dict()
    _check(model, weights, n_kv_heads)
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = n_kv_heads
    with no_init_weights(), model.device:
        pooled = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    pooled.tie_weights()
    group = model.config.num_key_value_heads // n_kv_heads
    found = {
        name: _mean(weight, n_kv_heads, group) if PROJECTION.search(name) else weight
        for name, weight in weights.items()
    }
    _check_shapes(model, found, pooled.state_dict())
    pooled.load_state_dict(found)
    return pooled.train(model.training)


def _mean(weight: Tensor, n_kv_heads: int, group: int) -> Tensor:
    """[G * R * head_dim, ...] to [G * head_dim, ...]; R neighbours served neighbouring query heads, which now share."""
    return weight.unflatten(0, (n_kv_heads, group, -1)).mean(1).flatten(0, 1)


def _check(model: PreTrainedModel, weights: dict[str, Tensor], n_kv_heads: int) -> None:
    n_before = getattr(model.config, "num_key_value_heads", None)
    if n_before is None or not any(map(PROJECTION.search, weights)):
        raise ValueError(
            f"model={type(model).__name__}: no k_proj and v_proj whose heads could be pooled; valid: a Llama-like model"
        )
    divisors = [n for n in range(1, n_before + 1) if n_before % n == 0]
    if n_kv_heads not in divisors:
        valid = ", ".join(map(str, divisors))
        raise ValueError(f"n_kv_heads={n_kv_heads}: {n_before} KV heads make no equal groups; valid: {valid}")


def _check_shapes(model: PreTrainedModel, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    shapes: dict[str, torch.Size] = {name: weight.shape for name, weight in expected.items()}
    if odd := [name for name, weight in found.items() if shapes.get(name) != weight.shape]:
        raise ValueError(
            f"model={type(model).__name__}: {odd[0]} spans several KV heads; valid: weights that belong to single heads"
        )
