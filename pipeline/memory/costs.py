"""What shapes say a run must cost: bytes that are held and read, and products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.decoding import Decoder
from pipeline.memory.layers import attention_layers
from pipeline.memory.measured import Ceilings
from pipeline.memory.weights import held
from pipeline.record import Predicted


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes that one more token of one sequence adds to the cache of the architecture itself, nothing compressed.

    Over the layers that hold every token: a window, or a pattern that lets tokens go, adds nothing once it is full, and
    the state of a recurrent layer never grows.
    """
    return sum(layer.bytes_per_token(dtype) for layer in attention_layers(config) if layer.window is None)


def prefill_flop(model: PreTrainedModel, seq_len: int, batch: int) -> float:
    """Matrix products of one prefill: 2 per weight and token, attention to what is visible, the head at the last token.

    Of experts, those that a token goes to. Recurrences are left out: beside their projections they are small.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight
    named = ((name, p) for name, p in model.named_parameters() if id(p) not in embeddings | {id(head)})
    n_weights = sum(p.numel() * _share_in_use(name, p, model.config) for name, p in named)
    attention = sum(2 * layer.n_products * layer.n_pairs(seq_len) for layer in attention_layers(model.config))
    return float(batch * (2 * n_weights * seq_len + attention + 2 * head.numel()))


def _share_in_use(name: str, weight: torch.Tensor, config: Any) -> float:
    """Of the experts [n, ..] of a layer, those that one token goes to; all of any other weight."""
    return config.num_experts_per_tok / len(weight) if ".experts." in name and weight.dim() == 3 else 1


def weight_bytes(model: PreTrainedModel) -> int:
    """Of all that holds weights, whatever they are held in; tied ones count once."""
    return sum(held(model).values())


def weight_bytes_per_step(model: PreTrainedModel) -> int:
    """Weights that one decode step reads: all but an embedding table that is only looked up."""
    lookup: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return weight_bytes(model) - (0 if lookup.weight is head.weight else lookup.weight.nbytes)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one cache, whole batch and all layers, as it counts them itself."""

    logical: int  # of the tokens kept half-way through decoding: what a step reads
    held: int  # at the last step


def footprint(new_decoder: Callable[[int], Decoder], seq_len: int, batch: int, n_new_tokens: int) -> Footprint | None:
    """By a prompt and one step on the meta device, where they take no memory and little time; None without a cache.

    `new_decoder`: given the number of tokens that will follow the prompt, of a model on the meta device. What the step
    adds is added by every other one. Raises whatever the technique and the model raise; RuntimeError for what asks
    tensors for values, which have none there.
    """
    with new_decoder(n_new_tokens) as decoder:
        if decoder.cache is None:
            return None
        ids_BT = torch.zeros(batch, seq_len + 1, dtype=torch.long, device="meta")
        decoder.foresee(ids_BT, seq_len)
        prompt_BT, next_B1 = ids_BT.tensor_split([seq_len], dim=1)
        decoder.feed(prompt_BT)
        logical, held = decoder.kv_bytes_logical, decoder.kv_bytes_held
        decoder.feed(next_B1)

    def after(n_steps: int, before: int, now: int) -> int:
        return now + max(now - before, 0) * max(n_steps - 1, 0)  # what is given back, is given back once

    return Footprint(
        logical=after(n_new_tokens // 2, logical, decoder.kv_bytes_logical),
        held=after(n_new_tokens, held, decoder.kv_bytes_held),
    )


def estimated(
    model: PreTrainedModel, kv_budget: int | None, *, seq_len: int, batch: int, n_new_tokens: int
) -> Footprint:
    """Of a cache whose shapes depend on data: the budget, in the model's own numbers."""
    layers = attention_layers(model.config)

    def held(n_seen: int) -> int:
        n_kept = min(n_seen, kv_budget or n_seen)
        return batch * sum(layer.bytes_per_token(model.dtype) * layer.n_held(n_kept) for layer in layers)

    return Footprint(held(seq_len + n_new_tokens // 2), held(seq_len + n_new_tokens))


def predict(
    model: PreTrainedModel,
    cache: Footprint | None,
    *,
    seq_len: int,
    batch: int,
    ceilings: Ceilings,
    as_held: PreTrainedModel | None = None,
) -> Predicted:
    """Cost from shapes alone, so the model may be on the meta device. No `cache`: every step computes all again.

    `as_held`: the model with its weights as they are held, where that is not as plain as in `model`.
    """
    as_held = as_held or model
    read = weight_bytes_per_step(as_held) + (cache.logical if cache else 0)
    read_s = read / ceilings.copy_bandwidth_bytes_per_s
    flop = prefill_flop(model, seq_len, batch)
    prefill_s = flop / ceilings.matmul_flop_per_s
    return Predicted(
        weight_bytes=weight_bytes(as_held),
        kv_bytes_per_token=kv_bytes_per_token(model.config, model.dtype),
        kv_bytes_held=cache.held if cache else 0,
        decode_bytes_per_step=read,
        decode_floor_s=read_s if cache else max(read_s, prefill_s),
        prefill_flop=flop,
        prefill_floor_s=prefill_s,
    )
