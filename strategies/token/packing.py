"""Codes of 2, 4 or 8 bits, packed into words, and the two products of attention on them.

Tokens lie side by side, so that a vector register holds the same dimension of neighbouring tokens. Word i of
W holds the dimensions i, i + W, i + 2W, … of D, lowest bits first; what D lacks to fill the last words is padding.
Shapes: G query heads of a KV head, D dimensions, W = D · bits / 32 words, N tokens; "…" is any leading shape.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache, reduce
from operator import add, or_
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

WIDTHS = (2, 4, 8)
_WORD = 32
_WORTH_COMPILING = 1 << 15  # words of one sequence; below, compiling for seconds saves no time worth them
_AT_ONCE = 512  # tokens whose codes are unpacked together where nothing is compiled, and a core's own cache holds them


def n_words(n_dims: int, bits: int) -> int:
    return -(-n_dims * bits // _WORD)


def n_slots(capacity: int) -> int:
    """To allocate for so many tokens: never as many as are looked at, which would take one more kernel, in mid-run."""
    return capacity + 1


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers [..., D, N] in 0 … 2^bits - 1 → int32 [..., W, N]."""
    if n_padding := n_words(codes.shape[-2], bits) * _WORD // bits - codes.shape[-2]:
        codes = pad(codes, (0, 0, 0, n_padding))
    parts = codes.int().unflatten(-2, (_WORD // bits, -1)).unbind(-3)
    return reduce(or_, (part << shift for part, shift in zip(parts, range(0, _WORD, bits), strict=True)))


def unpack(packed: Tensor, bits: int, n_dims: int, dtype: torch.dtype) -> Tensor:
    """int32 [..., W, N] → numbers of `dtype` [..., D, N]."""
    return torch.cat([part.to(dtype) for part in _parts(packed, bits)], dim=-2)[..., :n_dims, :]


def dot(rows: Tensor, packed: Tensor, bits: int, along: int = -1) -> Tensor:
    """rows [..., G, D] with each token's codes [..., W, N] → [..., G, N]; codes are unpacked in registers.

    `along`: the dimension that grows from step to step.
    """
    if n_padding := packed.shape[-2] * _WORD // bits - rows.shape[-1]:
        rows = pad(rows, (0, n_padding))
    if _compiles(packed):
        return _as_one(_dot)(rows if along == -1 else _growing(rows, along), _growing(packed, along), bits)
    pieces = [rows @ unpack(piece, bits, rows.shape[-1], rows.dtype) for piece in _pieces(packed)]
    return torch.cat(pieces, dim=-1)


def mix(weight: Tensor, packed: Tensor, bits: int, n_dims: int) -> Tensor:
    """Sum of the tokens' codes [..., W, N] by weight [..., G, N] → [..., G, D]."""
    if _compiles(packed):
        return _as_one(_mix)(_growing(weight), _growing(packed), bits)[..., :n_dims]
    pieces = zip(_pieces(weight), _pieces(packed), strict=True)
    sums = [some @ unpack(piece, bits, n_dims, weight.dtype).transpose(-1, -2) for some, piece in pieces]
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    return total


def _pieces(tokens: Tensor) -> tuple[Tensor, ...]:
    """[..., N] so many at a time; all where that is a launch each, or where there are only shapes."""
    return tokens.split(_AT_ONCE if tokens.device.type == "cpu" else max(tokens.shape[-1], 1), dim=-1)


def fused(work: Callable[..., Any], packed: Tensor) -> Callable[..., Any]:
    """`work` as one kernel where these codes are so many that compiling pays."""
    return _as_one(work) if _compiles(packed) else work


def _growing(tensor: Tensor, dim: int = -1) -> Tensor:
    """Its size is no constant of the kernel, or the second size would be compiled anew in mid-run."""
    if not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(tensor, dim % tensor.dim())  # it takes no negative one, and does not say so
    return tensor


def _parts(packed: Tensor, bits: int) -> list[Tensor]:
    return [(packed >> shift) & (2**bits - 1) for shift in range(0, _WORD, bits)]


def _dot(rows: Tensor, packed: Tensor, bits: int) -> Tensor:
    parts = zip(rows.chunk(_WORD // bits, dim=-1), _parts(packed, bits), strict=True)
    terms = [row[..., :, :, None] * part[..., None, :, :].to(rows.dtype) for row, part in parts]
    # A sum for every four parts: in one long chain each addition would wait for the one before.
    sums = [(a + b + c + d).sum(-2) for a, b, c, d in zip(*(terms[i::4] for i in range(4)), strict=True)]
    return reduce(add, sums)


def _mix(weight: Tensor, packed: Tensor, bits: int) -> Tensor:
    sums = [(weight[..., None, :] * part[..., None, :, :].to(weight.dtype)).sum(-1) for part in _parts(packed, bits)]
    return torch.cat(sums, dim=-1)


def _compiles(packed: Tensor) -> bool:
    """Whether compiling pays and can be done; inside a step that is compiled as a whole it is part of that.

    Slots that are still empty count: a sequence that grows would begin to be compiled in mid-run.
    """
    if packed.device.type == "meta" or max(packed.stride(0), packed[0].numel()) < _WORTH_COMPILING:
        return False
    return torch.compiler.is_compiling() or _has_compiler(packed.device.type)


@cache
def _has_compiler(device: str) -> bool:
    """On a GPU for C: torch brings what compiles kernels, but not what compiles the function that launches them."""
    variable, *names = ("CC", "gcc", "clang") if device == "cuda" else ("CXX", "g++", "clang++")
    return any(shutil.which(name) for name in (os.environ.get(variable, names[0]), *names))


def _as_one(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` as one kernel, or as part of what is being compiled."""
    return work if torch.compiler.is_compiling() else _compiled(work)


@cache
def _compiled(work: Callable[..., Any]) -> Callable[..., Any]:
    # One for each width, number of dimensions, and whether rows are one or many: more than the eight that are usual.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(work)
