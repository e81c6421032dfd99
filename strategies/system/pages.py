"""Tokens that lie in blocks of a pool, and the two products of attention on them, made through the table.

A kernel that is compiled reads every block where it lies: the index is part of the product, and no copy of the cache is
made. Where nothing is compiled, some blocks at a time are gathered, which costs a copy of each.
Shapes: N blocks of the pool, P tokens of one, B batch, H KV heads, G query heads of one, D head_dim, W words of packed
codes, n blocks of a sequence, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from strategies.token import packing
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.parts import Storage
from strategies.token.per_token import PerTokenStorage

_AT_ONCE = 32  # blocks: few enough for a core's own cache, many enough to be worth the calls

Parts = tuple[Tensor, ...]  # what tokens are held in, those of keys first, each [B or N, H, T or P, ...]


class Pages(Protocol):
    """One encoding in blocks; `pools` are the parts of all blocks, `table` [B, n] says which belong to whom."""

    def cut(self, key: Tensor, value: Tensor) -> Parts:
        """key, value [B, H, T, D] as they are held."""
        ...

    def joined(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, D] again."""
        ...

    def products(self, rows: Tensor, pools: Parts, table: Tensor) -> Tensor:
        """rows [B, H, G, D] with every key → [B, H, G, n · P]."""
        ...

    def weighted(self, weight: Tensor, pools: Parts, table: Tensor) -> Tensor:
        """Sum of the values by weight [B, H, G, n · P] → [B, H, G, D]."""
        ...


def pages_of(storage: Storage) -> Pages | None:
    """How an encoding, given by an empty storage of it, is cut into blocks; None where it cannot be."""
    if type(storage) is DenseStorage:
        return DensePages()
    return PerTokenPages(storage.bits) if type(storage) is PerTokenStorage else None


class DensePages:
    """Keys and values in the model's own numbers."""

    def cut(self, key: Tensor, value: Tensor) -> Parts:
        return key, value

    def joined(self, parts: Parts) -> tuple[Tensor, Tensor]:
        key, value = parts
        return key, value

    def products(self, rows: Tensor, pools: Parts, table: Tensor) -> Tensor:
        if kernel := _kernel(_dot, pools, table):
            return kernel(rows, pools[0], table)
        pieces = [rows @ gathered(pools[0], some).to(rows.dtype).mT for some in _pieces(table, 1)]
        return torch.cat(pieces, dim=-1)

    def weighted(self, weight: Tensor, pools: Parts, table: Tensor) -> Tensor:
        weight = weight.unflatten(-1, (table.shape[1], -1))
        if kernel := _kernel(_mix, pools, table):
            return kernel(_growing(weight, 3), pools[1], table)
        pieces = zip(_pieces(weight, 3), _pieces(table, 1), strict=True)
        sums = [some.flatten(3) @ gathered(pools[1], at).to(weight.dtype) for some, at in pieces]
        return torch.stack(sums).sum(0)


class PerTokenPages:
    """Codes and scales of `strategies.token.per_token`: of keys and of values, codes [N, H, P, W] and scales [N, H, P].

    In memory codes are [N, H, W, P], so that a vector register holds the same dimension of neighbouring tokens.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.middle = 2 ** (bits - 1)

    def cut(self, key: Tensor, value: Tensor) -> Parts:
        coder = PerTokenStorage(Contiguous(), bits=self.bits)
        n_tokens, self.dtype, self.head_dim = key.shape[2], key.dtype, key.shape[3]
        coder.load(key, value, n_tokens)
        codes = [codes[..., :n_tokens].transpose(2, 3) for codes in coder.codes]
        scales = [scales[..., :n_tokens] for scales in coder.scales]
        return codes[0], scales[0], codes[1], scales[1]

    def joined(self, parts: Parts) -> tuple[Tensor, Tensor]:
        key, value = (
            (packing.unpack(codes.transpose(2, 3), self.bits, self.head_dim, scales.dtype) - self.middle)
            .mul(scales[:, :, None])
            .transpose(2, 3)
            .to(self.dtype)
            for codes, scales in (parts[:2], parts[2:])
        )
        return key, value

    def products(self, rows: Tensor, pools: Parts, table: Tensor) -> Tensor:
        codes, scales = pools[:2]
        if kernel := _kernel(_dot_codes, pools, table):
            return kernel(rows, codes, scales, table, self.bits)
        pieces = [_dot_codes(rows, codes, scales, some, self.bits) for some in _pieces(table, 1)]
        return torch.cat(pieces, dim=-1)

    def weighted(self, weight: Tensor, pools: Parts, table: Tensor) -> Tensor:
        weight = weight.unflatten(-1, (table.shape[1], -1))
        codes, scales = pools[2:]
        if kernel := _kernel(_mix_codes, pools, table):
            return kernel(_growing(weight, 3), codes, scales, table, self.bits, self.head_dim)
        pieces = zip(_pieces(weight, 3), _pieces(table, 1), strict=True)
        sums = [_mix_codes(some, codes, scales, at, self.bits, self.head_dim) for some, at in pieces]
        return torch.stack(sums).sum(0)


def _pieces(blocks: Tensor, dim: int) -> tuple[Tensor, ...]:
    """So many at a time; all where that is a launch each, or where there are only shapes."""
    return blocks.split(_AT_ONCE if blocks.device.type == "cpu" else max(blocks.shape[dim], 1), dim=dim)


def gathered(pool: Tensor, table: Tensor) -> Tensor:
    """[N, H, P, ...] at [B, n] → a copy [B, H, n · P, ...]."""
    return pool[table].transpose(1, 2).flatten(2, 3)


def _dot(rows: Tensor, pool: Tensor, table: Tensor) -> Tensor:
    held = pool[table].transpose(1, 2).to(rows.dtype)
    return (rows[:, :, :, None, None] * held[:, :, None]).sum(-1).flatten(3)


def _mix(weight: Tensor, pool: Tensor, table: Tensor) -> Tensor:
    held = pool[table].transpose(1, 2).to(weight.dtype)
    # A sum for each block first: in one sum over all tokens, every few dimensions would walk the whole cache.
    return (weight[..., None] * held[:, :, None]).sum(4).sum(3)


def _dot_codes(rows: Tensor, codes: Tensor, scales: Tensor, table: Tensor, bits: int) -> Tensor:
    packed, scale = codes.transpose(2, 3)[table].transpose(1, 2), scales[table].transpose(1, 2)
    product = packing.dot(rows[:, :, None], packed, bits).transpose(2, 3)  # [B, H, G, n, P]
    shift = 2 ** (bits - 1) * rows.sum(-1)[..., None, None]
    return ((product - shift) * scale[:, :, None]).flatten(3)


def _mix_codes(weight: Tensor, codes: Tensor, scales: Tensor, table: Tensor, bits: int, n_dims: int) -> Tensor:
    packed, scale = codes.transpose(2, 3)[table].transpose(1, 2), scales[table].transpose(1, 2)
    folded = weight * scale[:, :, None]
    sums = packing.mix(folded.transpose(2, 3), packed, bits, n_dims)  # of each block [B, H, n, G, D]
    return sums.sum(2) - 2 ** (bits - 1) * folded.sum((3, 4))[..., None]


def _kernel(work: Callable[..., Any], pools: Parts, table: Tensor) -> Callable[..., Any] | None:
    """`work` with the index fused in, where a sequence has so much that compiling pays; None where not."""
    sequence = pools[0][:1].expand(table.shape[1], *pools[0].shape[1:])[None]  # as much as one reads; no copy
    kernel = packing.fused(work, sequence)
    if kernel is work:
        return None
    for pool in pools:
        _growing(pool, 0)
    _growing(table, 1)
    return kernel


def _growing(tensor: Tensor, dim: int) -> Tensor:
    """Its size is no constant of the kernel, which would be compiled anew in mid-run."""
    if not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return tensor
