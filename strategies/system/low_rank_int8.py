"""Low-rank factors of the weights themselves, held in 8 bits (what an earlier study called LORC)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from strategies.system.factors import Factors, require_rank
from strategies.system.linears import linears, matrix, replace
from strategies.system.weight_only import Int8Linear, int8_linear, quantised


@dataclass(frozen=True)
class LowRankInt8:
    """W ≈ up · down, at one `rank` in all layers or at the rank that keeps a share `energy` of ‖W‖² in each.

    Both factors have a scale for each of their outputs. A layer whose factors would take more than the matrix in 8 bits
    holds that instead: from rank n_in · n_out / (n_in + n_out) on, for a square matrix half its size. On meta there are
    no singular values; with `energy` every layer is then predicted to hold its matrix, which is the most it can.
    """

    rank: int | None = None
    energy: float | None = None
    needs_calibration = False

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ValueError(f"rank={self.rank} energy={self.energy}: one of them says the rank; valid: the other null")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank}: holds nothing; valid: at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy}: not a share of the weights; valid: more than 0, at most 1")

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ValueError for a rank above a matrix of the model, or a model without plain weights."""
        if self.rank is not None:
            require_rank(model, self.rank)
        for name in tuple(linears(model)):
            linear = model.get_submodule(name)
            replace(model, name, self._held(matrix(linear), linear.bias))  # type: ignore[arg-type]

    def _held(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        whole = Int8Linear(weight, bias)
        if self.rank is None and weight.is_meta:
            return whole
        factors = Factors.of(weight)
        rank = self.rank if self.energy is None else factors.rank_of(self.energy)
        assert rank is not None, "one of them is given"
        low = LowRankLinear(*factors.first(rank), bias, weight.dtype)
        return low if _n_bytes(low) < _n_bytes(whole) else whole


class LowRankLinear(nn.Module):
    """y = (x · downᵀ) · upᵀ + bias, with both factors in int8 and their scales in `dtype`."""

    up: Tensor
    down: Tensor
    up_scale: Tensor
    down_scale: Tensor

    def __init__(self, up: Tensor, down: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        for name, factor in (("up", up), ("down", down)):
            codes, scale = quantised(factor, dtype)
            self.register_buffer(name, codes)
            self.register_buffer(f"{name}_scale", scale)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(int8_linear(x, self.down, self.down_scale), self.up, self.up_scale, self.bias)


def _n_bytes(module: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in module.buffers())
