"""Weight-only quantisation to 8 bits, one scale for each output: what goes through keeps its dtype (W8A16, W8A32).

Shapes: n_in and n_out as in a linear layer, "…" any leading shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from strategies.system.integers import LARGEST

_FEW_ROWS = 16  # up to here a product takes no longer than reading its weights
_KERNEL_MULTIPLE = 32  # of n_in; PyTorch's kernel reads beyond the end of other matrices, and does not say so
_PIECE = 1 << 18  # weights that are widened at once: few enough to stay in a core's own cache


class Int8Linear(nn.Module):
    """y = (x · weightᵀ) · scale + bias, with `weight` int8 [n_out, n_in] and `scale` [n_out] in the model's dtype."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        codes, scale = quantised(weight, weight.dtype)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias)


def quantised(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[n_out, n_in] → int8 of the same shape and scales [n_out] of `dtype`; all zeros have the scale 1.

    Codes are those of the scale as it is held, so that rounding it to 16 bits costs next to no accuracy.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = (wide.abs().amax(1) / LARGEST).to(dtype)
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (wide / scale[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return codes.to(torch.int8, memory_format=torch.contiguous_format), scale


def dequantised(codes: Tensor, scale: Tensor) -> Tensor:
    """What they stand for [n_out, n_in], in single precision at least."""
    return codes * scale.to(torch.promote_types(scale.dtype, torch.float32))[:, None]


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., n_in] → [..., n_out].

    In bfloat16 on CPU through PyTorch's own kernel, which reads the codes alone; its other dtypes take a scalar path
    many times as long. Elsewhere codes are widened piece by piece, which never leaves the cache, where rows are so few
    that reading weights is all the work, and at once where they are many.
    """
    rows = x.reshape(-1, x.shape[-1])
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and codes.shape[1] % _KERNEL_MULTIPLE == 0:
        product = torch._weight_int8pack_mm(rows.contiguous(), codes, scale)
    else:
        in_pieces = x.device.type == "cpu" and rows.shape[0] <= _FEW_ROWS
        pieces = codes.split(max(1, _PIECE // codes.shape[1])) if in_pieces else (codes,)
        product = torch.cat([rows @ piece.to(x.dtype).T for piece in pieces], dim=1) * scale
    return (product if bias is None else product + bias).reshape(*x.shape[:-1], codes.shape[0])
