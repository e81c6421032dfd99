"""Numbers that are none end a measurement, and the error says at which step and in which layer they came up.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.decoding import Decoder


def require_finite(logits: Tensor, new_decoder: Callable[[], Decoder], fed: Sequence[Tensor]) -> None:
    """`logits` came from a fresh decoder that was given each of `fed` [B, T] in turn, the prompt first.

    Raises FloatingPointError where they hold NaN or infinity: what follows would be noise that looks like a
    measurement. Only then is everything computed once more, to find where it began.
    """
    if not bool(torch.isfinite(logits).all()):
        where = _beginning(new_decoder, fed)
        raise FloatingPointError(f"NaN or infinity {where}; use a wider dtype (dtype=float32)")


def _beginning(new_decoder: Callable[[], Decoder], fed: Sequence[Tensor]) -> str:
    with new_decoder() as decoder:
        decoder.foresee(torch.cat(list(fed), dim=1), fed[0].shape[1])
        for step, ids_BT in enumerate(fed):
            with _watched(decoder.model) as not_finite:
                logits = decoder.feed(ids_BT)
            if not_finite or not bool(torch.isfinite(logits).all()):
                layer = f"layer {not_finite[0]}" if not_finite else "the head, behind the last layer"
                return f"at step {step}{'' if step else ' (the prompt)'}, first in {layer}"
    return "that did not come up again when the same was computed once more"


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[int]]:
    """The layers, counted from 0, that put out something that is not finite, in the order in which they ran."""
    not_finite: list[int] = []

    def watch(layer_idx: int) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            if not bool(torch.isfinite(hidden).all()):
                not_finite.append(layer_idx)

        return look

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    with ExitStack() as hooks:
        for layer_idx, layer in enumerate(layers):
            hooks.callback(layer.register_forward_hook(watch(layer_idx)).remove)
        yield not_finite
