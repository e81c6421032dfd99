"""Which norm feeds which linear layers, so that a channel can be scaled in the one and scaled back in the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from strategies.system.linears import Linear, linears, matrix

_QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
# The first kind all of whose layers a block has; a norm that none of them names (Gemma's on the way out) is left alone.
_KINDS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"input_layernorm": _QKV, "pre_feedforward_layernorm": _GATED},
    {"input_layernorm": _QKV, "post_attention_layernorm": _GATED},
    {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
)


@dataclass(frozen=True)
class Fed:
    """A norm and all the linear layers that read what it gives, by name."""

    norm: nn.Module
    consumers: dict[str, Linear]

    @torch.no_grad()
    def rescale(self, factors: Tensor) -> None:
        """Divide the channels [n_in] of the norm, multiply the input columns of its consumers: the same function."""
        offset = weight_offset(self.norm)
        weight = self.norm.get_parameter("weight")
        weight.copy_((weight + offset) / factors - offset)
        if getattr(self.norm, "bias", None) is not None:
            self.norm.get_parameter("bias").div_(factors)
        for linear in self.consumers.values():
            matrix(linear).mul_(factors)


def fed_by_norms(model: PreTrainedModel) -> list[Fed]:
    """In the order of the model. Raises ValueError for blocks of a kind that we do not know, and for weights of theirs
    that another transform holds already.
    """
    plain = linears(model)
    return [fed for name, block in _blocks(model) for fed in _fed(model, name, block, plain)]


def weight_offset(norm: nn.Module) -> float:
    """What is added to its weight: nothing, or 1 as in Gemma, whose norm gives something at weight 0."""
    weight = norm.get_parameter("weight")
    if weight.device.type == "meta":
        return 0.0
    zeros = {name: torch.zeros_like(value) for name, value in norm.named_parameters()}
    probe = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device)
    return 1.0 if torch.func.functional_call(norm, zeros, (probe,)).any() else 0.0


def _blocks(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The longest list of layers, which is what a decoder is made of."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    name, blocks = max(lists, key=lambda found: len(found[1]), default=("", nn.ModuleList()))
    return [(f"{name}.{index}", block) for index, block in enumerate(blocks)]


def _fed(model: PreTrainedModel, name: str, block: nn.Module, plain: dict[str, Linear]) -> list[Fed]:
    modules = dict(block.named_modules())
    kind = next((kind for kind in _KINDS if all(part in modules for part in _parts(kind))), None)
    if kind is None or any(getattr(modules[norm], "weight", None) is None for norm in kind):
        raise ValueError(
            f"model={type(model).__name__}: {type(block).__name__} has no norms that we know the readers of; "
            "valid: blocks like Llama's, Gemma's or GPT-2's"
        )
    held = [part for consumers in kind.values() for part in consumers if f"{name}.{part}" not in plain]
    if held:
        raise ValueError(
            f"model={type(model).__name__}: {name}.{held[0]} is held by another transform; valid: before it"
        )
    return [
        Fed(modules[norm], {f"{name}.{part}": plain[f"{name}.{part}"] for part in consumers})
        for norm, consumers in kind.items()
    ]


def _parts(kind: dict[str, tuple[str, ...]]) -> list[str]:
    return [part for norm, consumers in kind.items() for part in (norm, *consumers)]
