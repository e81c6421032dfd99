"""Products of two matrices of 8-bit integers, by whichever kernel is exact and fast on this machine.

All of them multiply integers and add integers. Sums come as float32, which holds them exactly up to 2^24: never reached
where n_in is at most 1,040, and beyond it only if nearly all codes were extreme and of one sign.
Shapes: M rows, K = n_in, N = n_out.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn.functional import pad

from strategies.token.packing import fused

LARGEST = 127  # codes are symmetric, so that each has its negative
_CODES_PER_WORD = 4
_CUDA_ROWS, _CUDA_MULTIPLE = 32, 8
_CAN_SATURATE = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and not torch.cpu._is_vnni_supported()
)


def quantise(values: Tensor, scale: Tensor) -> Tensor:
    """The nearest codes, int8; `scale` broadcasts."""
    return (values / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)


def scale_of(largest: Tensor) -> Tensor:
    """What one code is worth where `largest` is the largest magnitude; nothing but zeros has codes 0 at any scale."""
    return largest.clamp(min=1e-8) / LARGEST


def product(codes: Tensor, weight: Tensor) -> Tensor:
    """int8 [M, K] with int8 [N, K], both within ±127 → their sums, float32 [M, N], to be written over."""
    if weight.is_cuda:
        return _padded(codes, weight)
    if len(codes) == 1 and weight.shape[1] % _CODES_PER_WORD == 0:
        # The general kernels rearrange the weight first, which for one row takes longer than to multiply it.
        kernel = fused(_one_row, weight[None])
        if kernel is not _one_row:
            return kernel(_by_place(codes[0]), weight.view(torch.int32))[None]
    if _CAN_SATURATE and weight.device.type == "cpu":
        return _by_sign(codes, weight)
    return torch._int_mm(codes, weight.T).float()


def _padded(codes: Tensor, weight: Tensor) -> Tensor:
    """CUDA's kernel takes no fewer than 17 rows, and multiples of 8 of everything else."""
    (n_rows, n_in), n_out = codes.shape, weight.shape[0]
    more_in, more_out = -n_in % _CUDA_MULTIPLE, -n_out % _CUDA_MULTIPLE
    rows = pad(codes, (0, more_in, 0, max(_CUDA_ROWS - n_rows, -n_rows % _CUDA_MULTIPLE)))
    columns = pad(weight, (0, more_in, 0, more_out)) if more_in or more_out else weight  # padding nothing copies all
    return torch._int_mm(rows, columns.T)[:n_rows, :n_out].float()


def _by_sign(codes: Tensor, weight: Tensor) -> Tensor:
    """Without VNNI oneDNN adds pairs of products in 16 bits: 255 · 127 · 2 saturates there, 127 · 127 · 2 does not.

    So rows of the positive codes and rows of the negative ones go through its kernel, and no pair is too large.
    """
    signs = torch.cat([codes.clamp(min=0), codes.clamp(max=0).neg_()]).view(torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    unit, no_offset = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    sums = torch.ops.onednn.qlinear_pointwise(
        signs, 1.0, 0, packed, unit, no_offset, None, 1.0, 0, torch.float32, "none", [], "none"
    )
    return sums[: len(codes)].sub_(sums[len(codes) :])


def _by_place(codes: Tensor) -> Tensor:
    """int8 [K] → float32 [4, K / 4]: those that meet the first, second, … byte of each word."""
    return codes.view(-1, _CODES_PER_WORD).T.float().contiguous()


def _one_row(places: Tensor, words: Tensor) -> Tensor:
    """[4, K / 4] with int32 [N, K / 4] → [N]: four codes are read at once, and become numbers in registers."""
    first, second, third, fourth = (
        place * ((words << (24 - shift)) >> 24).float()
        for place, shift in zip(places.unbind(), (0, 8, 16, 24), strict=True)
    )
    return (first + second + third + fourth).sum(-1)
