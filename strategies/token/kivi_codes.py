"""The two ways of KIVI to share scales and zero points: x ≈ scale · code + zero (arXiv 2402.02750).

Shapes: B batch, H KV heads, G query heads of one, N tokens, D head_dim, S group_size, P bytes of the codes of a group.
Scales and zero points are held in half precision; in double where the model computes in double.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.token.packing import dot, mix, pack, unpack
from strategies.token.parts import Room

Held = tuple[Tensor, Tensor, Tensor]  # codes, scale, zero; all start with [B, H, N or N / S]


class ChannelCodes:
    """Keys: a scale and a zero point for each channel of S tokens; codes [B, H, N/S, S, P], the rest [B, H, N/S, D]."""

    def __init__(self, room: Room, capacity: int, like: Tensor, *, bits: int, group_size: int) -> None:
        self.bits, self.group_size = bits, group_size
        batch, n_kv_heads, _, head_dim = like.shape
        groups = (batch, n_kv_heads, capacity // group_size)
        self.held = _allocate(room, like, (*groups, group_size, head_dim * bits // 8), (*groups, head_dim))

    def bytes_of(self, n_coded: int) -> int:
        return sum(tensor[:, :, : n_coded // self.group_size].numel() * tensor.element_size() for tensor in self.held)

    def write(self, start: int, key: Tensor) -> None:
        """Whole groups [B, H, n, D] from token `start` on."""
        n_groups = key.shape[2] // self.group_size
        if n_groups:
            coded = _coded(key.unflatten(2, (n_groups, self.group_size)), 3, self.bits, self.held[1].dtype)
            first = start // self.group_size
            for held, new in zip(self.held, coded, strict=True):
                held[:, :, first : first + n_groups] = new

    def decoded(self, n_coded: int) -> Tensor:
        codes, scale, zero = self._first(n_coded, torch.promote_types(self.held[1].dtype, torch.float32))
        tokens = unpack(codes, self.bits, scale.dtype) * scale[:, :, :, None] + zero[:, :, :, None]
        return tokens.flatten(2, 3)

    def products(self, rows: Tensor, n_coded: int) -> Tensor:
        """rows [B, H, G, D] → [B, H, G, N]: scales go into the query, zero points make one number for each group."""
        codes, scale, zero = self._first(n_coded, rows.dtype)
        score = dot(rows[:, :, None] * scale[:, :, :, None], codes, self.bits)  # [B, H, N/S, G, S]
        constant = zero @ rows.transpose(-1, -2)  # [B, H, N/S, G]
        return (score + constant[..., None]).transpose(2, 3).flatten(3)

    def reorder(self, beam_idx: Tensor) -> None:
        codes, scale, zero = (tensor.index_select(0, beam_idx) for tensor in self.held)
        self.held = codes, scale, zero

    def _first(self, n_coded: int, dtype: torch.dtype) -> Held:
        codes, scale, zero = (tensor[:, :, : n_coded // self.group_size] for tensor in self.held)
        return codes, scale.to(dtype), zero.to(dtype)


class TokenCodes:
    """Values: a scale and a zero point for S channels of each token; codes [B, H, N, D/S, P], the rest without P."""

    def __init__(self, room: Room, capacity: int, like: Tensor, *, bits: int, group_size: int) -> None:
        self.bits, self.group_size = bits, group_size
        batch, n_kv_heads, _, head_dim = like.shape
        groups = (batch, n_kv_heads, capacity, head_dim // group_size)
        self.held = _allocate(room, like, (*groups, group_size * bits // 8), groups)

    def bytes_of(self, n_coded: int) -> int:
        return sum(tensor[:, :, :n_coded].numel() * tensor.element_size() for tensor in self.held)

    def write(self, start: int, value: Tensor) -> None:
        """Tokens [B, H, n, D] from token `start` on."""
        if value.shape[2]:
            coded = _coded(value.unflatten(3, (-1, self.group_size)), 4, self.bits, self.held[1].dtype)
            for held, new in zip(self.held, coded, strict=True):
                held[:, :, start : start + value.shape[2]] = new

    def decoded(self, n_coded: int) -> Tensor:
        codes, scale, zero = self._first(n_coded, torch.promote_types(self.held[1].dtype, torch.float32))
        return (unpack(codes, self.bits, scale.dtype) * scale[..., None] + zero[..., None]).flatten(3)

    def weighted(self, weight: Tensor, n_coded: int) -> Tensor:
        """weight [B, H, G, N] → [B, H, G, D]: scales and zero points go into the weights."""
        codes, scale, zero = self._first(n_coded, weight.dtype)
        folded = weight[:, :, None] * scale.permute(0, 1, 3, 2)[:, :, :, None]  # [B, H, D/S, G, N]
        total = mix(folded, codes.transpose(2, 3), self.bits) + (weight @ zero).transpose(2, 3)[..., None]
        return total.transpose(2, 3).flatten(3)

    def reorder(self, beam_idx: Tensor) -> None:
        codes, scale, zero = (tensor.index_select(0, beam_idx) for tensor in self.held)
        self.held = codes, scale, zero

    def _first(self, n_coded: int, dtype: torch.dtype) -> Held:
        codes, scale, zero = (tensor[:, :, :n_coded] for tensor in self.held)
        return codes, scale.to(dtype), zero.to(dtype)


def _allocate(room: Room, like: Tensor, codes: tuple[int, ...], shared: tuple[int, ...]) -> Held:
    narrow = like.new_empty(0, dtype=torch.float64 if like.dtype == torch.float64 else torch.float16)
    return (
        room.allocate(codes, like.new_empty(0, dtype=torch.uint8)),
        room.allocate(shared, narrow),
        room.allocate(shared, narrow),
    )


def _coded(tokens: Tensor, dim: int, bits: int, dtype: torch.dtype) -> Held:
    """tokens whose `dim` shares scale and zero point → packed codes, and both without that dimension, in `dtype`."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    low, high = tokens.aminmax(dim=dim, keepdim=True)
    zero, scale = low.to(dtype), ((high - low) / (2**bits - 1)).to(dtype)
    scale = torch.where(scale > 0, scale, 1.0)  # all of a group alike
    codes = ((tokens - zero) / scale).round().clamp(0, 2**bits - 1)
    return pack(codes, bits), scale.squeeze(dim), zero.squeeze(dim)
