"""Weights in 8 bits and low-rank factors of the error that makes (LoRC in ZeroQuant-V2, arXiv 2303.08302).

`scaled`: as in L²QER (arXiv 2402.02446), channels weigh in the error as much as is seen to go through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from strategies.system.factors import Factors, require_rank
from strategies.system.linears import linears, matrix, observe, replace
from strategies.system.weight_only import dequantised, int8_linear, quantised


@dataclass(frozen=True)
class LowRankCorrection:
    """W ≈ Ŵ + up · down, the factors being the best of `rank` for W - Ŵ and held in the model's dtype.

    The papers quantise weights to 4 bits and less, by groups, and may hold the factors in 8 bits; here Ŵ has 8 bits and
    one scale for each output.
    """

    rank: int = 32
    scaled: bool = False

    @property
    def needs_calibration(self) -> bool:
        return self.scaled

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ValueError for a rank above a matrix of the model, no text to scale by, or no plain weights."""
        require_rank(model, self.rank)
        magnitude = self._magnitudes(model, ids)
        for name in tuple(linears(model)):
            linear = model.get_submodule(name)
            replace(model, name, CorrectedLinear(matrix(linear), linear.bias, self.rank, magnitude.get(name)))  # type: ignore[arg-type]

    def _magnitudes(self, model: PreTrainedModel, ids: Tensor | None) -> dict[str, Tensor]:
        """The mean |x| of each channel [n_in] that goes into a layer, in single precision at least; none on meta."""
        if not self.scaled or model.device.type == "meta":
            return {}
        if ids is None or not ids.numel():
            raise ValueError("scaled=True: no text to see activations of; valid: calibration tokens, or scaled=False")
        magnitude: dict[str, Tensor] = {}

        def look(name: str, x: Tensor) -> None:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            magnitude[name] = wide.abs().flatten(0, -2).mean(0)

        observe(model, ids, look)
        return magnitude


class CorrectedLinear(nn.Module):
    """y = x · (scale · weight)ᵀ + (x · downᵀ) · upᵀ + bias; `weight` int8 [n_out, n_in], the rest as in the model."""

    weight: Tensor
    scale: Tensor
    up: Tensor
    down: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, rank: int, magnitude: Tensor | None) -> None:
        """`magnitude` [n_in]: how much an error of each column weighs; None for all the same."""
        super().__init__()
        codes, scale = quantised(weight, weight.dtype)
        up, down = correction(weight - dequantised(codes, scale), rank, magnitude)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("up", up.to(weight.dtype))
        self.register_buffer("down", down.to(weight.dtype))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias) + (x @ self.down.T) @ self.up.T


def correction(error: Tensor, rank: int, magnitude: Tensor | None) -> tuple[Tensor, Tensor]:
    """up [n_out, rank] and down [rank, n_in] with the least ‖(error - up · down) · magnitude‖ over all entries."""
    if magnitude is None:
        return Factors.of(error).first(rank)
    # A channel that lay still in this text may not do so in another.
    weight = magnitude.clamp_min((magnitude.max() / 1000).clamp_min(torch.finfo(magnitude.dtype).tiny))
    up, down = Factors.of(error * weight).first(rank)
    return up, down / weight
