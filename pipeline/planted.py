"""Structure that large models have and the embedded one lacks, put in by exact changes of its weights.

Nothing is trained and the classes are those of Transformers: a planted model computes what the original computes, and
can be saved and loaded as any other. What a technique loses on it, it loses to the structure.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

MARK = 1e-3  # of the sink, in a dimension that no other token has; small enough to leave its norms alone
SINK_LOGIT = 24.0  # of the sink over all other tokens, in a head that parks on it


@torch.no_grad()
def outlier_key_channels(model: PreTrainedModel, scale: float, pair: int) -> PreTrainedModel:
    """Every KV head's keys `scale` times as large in one rotary pair of channels, and its queries as much smaller.

    `pair` i is the channels i and i + head_dim / 2, which RoPE turns into each other: with one factor for both, every
    product of a query and a key is what it was, at all distances. Each KV head's rows of W_K, and the rows of W_Q of
    all query heads that share it.
    """
    planted = copy.deepcopy(model)
    for layer in _layers(planted):
        attention: Any = layer.self_attn
        for projection, factor in ((attention.k_proj, scale), (attention.q_proj, 1 / scale)):
            heads = projection.weight.view(-1, attention.head_dim, projection.in_features)
            heads[:, [pair, pair + attention.head_dim // 2]] *= factor
    return planted


@torch.no_grad()
def attention_sink(model: PreTrainedModel, sink_id: int) -> PreTrainedModel:
    """A Llama with one more KV head in each layer that looks at the token `sink_id` and, while it is there, idles.

    As the idle heads of large models do: all their queries point at the first token (a bias of the query), whose key
    is long and whose value is zero. Without that token the attention has to go somewhere, and other values pour in.
    Computes what `model` computes wherever `sink_id` comes first and nowhere else, up to the little attention that
    does not fit on it: exp(-SINK_LOGIT) for each other token.
    """
    config = copy.deepcopy(model.config)
    n_group = config.num_attention_heads // config.num_key_value_heads
    n_heads, n_old = config.num_attention_heads + n_group, config.hidden_size
    n_new = (n_old // n_heads + 1) * n_heads  # at least one dimension more; Transformers asks for a multiple
    config.update({
        "hidden_size": n_new,
        "num_attention_heads": n_heads,
        "num_key_value_heads": config.num_key_value_heads + 1,
        "head_dim": model.config.head_dim,
        "attention_bias": True,
        "rms_norm_eps": config.rms_norm_eps * n_old / n_new,
    })  # fmt: skip
    planted: Any = LlamaForCausalLM(config)
    planted.to(model.dtype).eval()
    for parameter in planted.parameters():
        parameter.zero_()
    for name, old in model.named_parameters():
        planted.get_parameter(name)[tuple(slice(n) for n in old.shape)] = _widened_norm(old, n_old / n_new)
    planted.get_input_embeddings().weight[sink_id, n_old] = MARK
    for layer, sink in zip(_layers(planted), _seen_of_sink(planted, sink_id, mark=n_old), strict=True):
        _park(layer.self_attn, n_group, sink, mark=n_old)
    return planted


def _widened_norm(old: Tensor, share: float) -> Tensor:
    """The weight of a norm whose mean now also counts dimensions that are zero; others as they are."""
    return old * math.sqrt(share) if old.dim() == 1 else old


def _seen_of_sink(model: Any, sink_id: int, mark: int) -> list[Tensor]:
    """What each layer's attention reads [hidden_size] where the sink stands: first, so that nothing changes it."""
    found: list[Tensor] = []
    hooks = []
    for layer in _layers(model):
        layer.input_layernorm.weight[mark] = 1.0
        hooks.append(layer.input_layernorm.register_forward_hook(lambda *io: found.append(io[2][0, 0])))
    model(torch.tensor([[sink_id]]))
    for hook in hooks:
        hook.remove()
    return found


def _park(attention: Any, n_group: int, sink: Tensor, mark: int) -> None:
    """The last KV head and its queries: values and outputs of the first one, but that the value of the sink is zero.

    Keys and queries meet in the pair that RoPE turns most slowly, so that distance hardly matters.
    """
    size, slowest = attention.head_dim, attention.head_dim // 2 - 1
    length = math.sqrt(SINK_LOGIT / attention.scaling)
    attention.q_proj.bias.view(-1, size)[-n_group:, slowest] = length
    attention.k_proj.weight.view(-1, size, len(sink))[-1, slowest, mark] = length / sink[mark]
    values, outputs = attention.v_proj.weight.view(-1, size, len(sink)), attention.o_proj.weight
    values[-1] = values[0]
    values[-1, :, mark] = -(values[0] @ sink) / sink[mark]
    outputs[:, -n_group * size :] = outputs[:, : n_group * size]


def _layers(model: Any) -> Iterable[Any]:
    return model.model.layers
