"""Codes of 2, 4 or 8 bits, packed into bytes, and the two products of attention on them.

Byte i of P holds the dimensions i, i + P, i + 2P, … of D, lowest bits first; so a part of all bytes is a slice of D.
Shapes: G query heads of a KV head, N tokens, D dimensions, P = D · bits / 8 bytes; "…" is any leading shape.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

WIDTHS = (2, 4, 8)
_WORTH_COMPILING = 1 << 17  # bytes of codes; below, a call costs more than the work
_AT_ONCE = 512  # tokens whose codes are unpacked together where nothing is compiled


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers [..., D] in 0 … 2^bits - 1 → uint8 [..., P]."""
    parts = codes.to(torch.uint8).chunk(8 // bits, dim=-1)
    packed = parts[0].clone()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """uint8 [..., P] → numbers of `dtype` [..., D]."""
    return torch.cat([part.to(dtype) for part in _parts(packed, bits)], dim=-1)


def dot(rows: Tensor, packed: Tensor, bits: int) -> Tensor:
    """rows [..., G, D] with each token's codes [..., N, P] → [..., G, N]; codes are unpacked in registers."""
    if _compiles(packed):
        return _compiled(_dot)(rows, packed, bits)
    pieces = packed.split(_AT_ONCE, dim=-2)
    return torch.cat([rows @ unpack(piece, bits, rows.dtype).transpose(-1, -2) for piece in pieces], dim=-1)


def mix(weight: Tensor, packed: Tensor, bits: int) -> Tensor:
    """Sum of the tokens' codes [..., N, P] by weight [..., G, N] → [..., G, D]."""
    if _compiles(packed):
        return _compiled(_mix)(weight, packed, bits)
    pieces = zip(weight.split(_AT_ONCE, dim=-1), packed.split(_AT_ONCE, dim=-2), strict=True)
    return torch.stack([some @ unpack(piece, bits, weight.dtype) for some, piece in pieces]).sum(0)


def _parts(packed: Tensor, bits: int) -> list[Tensor]:
    return [packed] if bits == 8 else [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]


def _dot(rows: Tensor, packed: Tensor, bits: int) -> Tensor:
    parts = zip(rows.chunk(8 // bits, dim=-1), _parts(packed, bits), strict=True)
    total = sum(row[..., :, None, :] * part[..., None, :, :].to(rows.dtype) for row, part in parts)
    assert isinstance(total, Tensor)
    return total.sum(-1)


def _mix(weight: Tensor, packed: Tensor, bits: int) -> Tensor:
    sums = [(weight[..., None] * part[..., None, :, :].to(weight.dtype)).sum(-2) for part in _parts(packed, bits)]
    return torch.cat(sums, dim=-1)


def _compiles(packed: Tensor) -> bool:
    """Whether compiling pays and can be done; inside a step that is compiled as a whole it is part of that."""
    if torch.compiler.is_compiling():
        return packed.numel() >= _WORTH_COMPILING
    return packed.numel() >= _WORTH_COMPILING and packed.device.type != "meta" and _has_compiler(packed.device.type)


@cache
def _has_compiler(device: str) -> bool:
    if device == "cuda":
        return True  # torch brings its own
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


@cache
def _compiled(product: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    return torch.compile(product, dynamic=True)
