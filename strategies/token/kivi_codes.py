"""The two ways of KIVI to share scales and zero points: x ≈ scale · code + zero (arXiv 2402.02750).

Scales and zero points are held in half precision; in double where the model computes in double.
Shapes: B batch, H KV heads, G query heads of one, N tokens, D head_dim, S group_size, W words of the codes of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.token.packing import dot, mix, n_slots, n_words, pack, unpack
from strategies.token.parts import Room

Held = tuple[Tensor, Tensor, Tensor]  # codes, scale, zero; all start with [B, H]


class ChannelCodes:
    """Keys: a scale and a zero point for each channel of S tokens; codes [B, H, W, N], the others [B, H, N/S, D]."""

    def __init__(self, room: Room, capacity: int, like: Tensor, *, bits: int, group_size: int) -> None:
        self.bits, self.group_size = bits, group_size
        *heads, _, head_dim = like.shape
        self.held = _allocate(
            room, like, (*heads, n_words(head_dim, bits), n_slots(capacity)), (*heads, capacity // group_size, head_dim)
        )

    def bytes_of(self, n_coded: int) -> int:
        codes, scale, zero = self._first(n_coded, self.held[1].dtype)
        return sum(tensor.numel() * tensor.element_size() for tensor in (codes, scale, zero))

    def write(self, start: int, key: Tensor) -> None:
        """Whole groups [B, H, n, D] from token `start` on."""
        n_groups = key.shape[2] // self.group_size
        if n_groups:
            codes, scale, zero = _coded(key.unflatten(2, (n_groups, -1)), 3, self.bits, self.held[1].dtype)
            first = start // self.group_size
            self.held[0][..., start : start + key.shape[2]] = pack(codes.flatten(2, 3).transpose(-1, -2), self.bits)
            self.held[1][:, :, first : first + n_groups] = scale
            self.held[2][:, :, first : first + n_groups] = zero

    def decoded(self, n_coded: int) -> Tensor:
        codes, scale, zero = self._first(n_coded, torch.promote_types(self.held[1].dtype, torch.float32))
        numbers = unpack(codes, self.bits, scale.shape[-1], scale.dtype).transpose(-1, -2)
        tokens = numbers.unflatten(2, (-1, self.group_size)) * scale[:, :, :, None] + zero[:, :, :, None]
        return tokens.flatten(2, 3)

    def products(self, rows: Tensor, n_coded: int) -> Tensor:
        """rows [B, H, G, D] → [B, H, G, N]: scales go into the query, zero points make one number for each group."""
        codes, scale, zero = self._first(n_coded, rows.dtype)
        grouped = codes.unflatten(3, (-1, self.group_size)).transpose(2, 3)  # [B, H, N/S, W, S]
        score = dot(rows[:, :, None] * scale[:, :, :, None], grouped, self.bits, along=2)  # [B, H, N/S, G, S]
        constant = zero @ rows.transpose(-1, -2)  # [B, H, N/S, G]
        return (score + constant[..., None]).transpose(2, 3).flatten(3)

    def reorder(self, beam_idx: Tensor) -> None:
        codes, scale, zero = (tensor.index_select(0, beam_idx) for tensor in self.held)
        self.held = codes, scale, zero

    def _first(self, n_coded: int, dtype: torch.dtype) -> Held:
        scale, zero = (tensor[:, :, : n_coded // self.group_size].to(dtype) for tensor in self.held[1:])
        return self.held[0][..., :n_coded], scale, zero


class TokenCodes:
    """Values: a scale and a zero point for S channels of each token; codes [B, H, D/S, W, N], the others without W."""

    def __init__(self, room: Room, capacity: int, like: Tensor, *, bits: int, group_size: int) -> None:
        self.bits, self.group_size = bits, group_size
        *heads, _, head_dim = like.shape
        groups = (*heads, head_dim // group_size)
        self.held = _allocate(room, like, (*groups, n_words(group_size, bits), n_slots(capacity)), (*groups, capacity))

    def bytes_of(self, n_coded: int) -> int:
        return sum(tensor[..., :n_coded].numel() * tensor.element_size() for tensor in self.held)

    def write(self, start: int, value: Tensor) -> None:
        """Tokens [B, H, n, D] from token `start` on."""
        if value.shape[2]:
            grouped = value.transpose(-1, -2).unflatten(2, (-1, self.group_size))  # [B, H, D/S, S, n]
            codes, *shared = _coded(grouped, 3, self.bits, self.held[1].dtype)
            for held, new in zip(self.held, (pack(codes, self.bits), *shared), strict=True):
                held[..., start : start + value.shape[2]] = new

    def decoded(self, n_coded: int) -> Tensor:
        codes, scale, zero = self._first(n_coded, torch.promote_types(self.held[1].dtype, torch.float32))
        numbers = unpack(codes, self.bits, self.group_size, scale.dtype)
        return (numbers * scale[:, :, :, None] + zero[:, :, :, None]).flatten(2, 3).transpose(-1, -2)

    def weighted(self, weight: Tensor, n_coded: int) -> Tensor:
        """weight [B, H, G, N] → [B, H, G, D]: scales and zero points go into the weights."""
        codes, scale, zero = self._first(n_coded, weight.dtype)
        folded = weight[:, :, None] * scale[:, :, :, None]  # [B, H, D/S, G, N]
        constant = weight @ zero.transpose(-1, -2)  # [B, H, G, D/S]
        mixed = mix(folded, codes, self.bits, self.group_size).transpose(2, 3)  # [B, H, G, D/S, S]
        return (mixed + constant[..., None]).flatten(3)

    def reorder(self, beam_idx: Tensor) -> None:
        codes, scale, zero = (tensor.index_select(0, beam_idx) for tensor in self.held)
        self.held = codes, scale, zero

    def _first(self, n_coded: int, dtype: torch.dtype) -> Held:
        codes, scale, zero = (tensor[..., :n_coded] for tensor in self.held)
        return codes, scale.to(dtype), zero.to(dtype)


def _allocate(room: Room, like: Tensor, codes: tuple[int, ...], shared: tuple[int, ...]) -> Held:
    narrow = like.new_empty(0, dtype=torch.float64 if like.dtype == torch.float64 else torch.float16)
    words = like.new_empty(0, dtype=torch.int32)
    return room.allocate(codes, words), room.allocate(shared, narrow), room.allocate(shared, narrow)


def _coded(tokens: Tensor, dim: int, bits: int, dtype: torch.dtype) -> Held:
    """tokens whose `dim` shares scale and zero point → codes, and both without that dimension, in `dtype`."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    low, high = tokens.aminmax(dim=dim, keepdim=True)
    zero = _rounded_down(low, dtype)  # what lies below it would be clipped
    scale = ((high - zero) / (2**bits - 1)).to(dtype)
    scale = torch.where(scale > 0, scale, 1.0)  # all of a group alike
    codes = ((tokens - zero) / scale).round().clamp(0, 2**bits - 1)
    return codes, scale.squeeze(dim), zero.squeeze(dim)


def _rounded_down(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest of `dtype` that are no larger. By their bits, since not every device has `nextafter` of halves."""
    nearest = numbers.to(dtype)
    if dtype != torch.float16:
        return nearest  # exactly the same
    bits = nearest.view(torch.int16)
    below = torch.where(nearest > 0, bits - 1, bits + 1).view(dtype)  # what was rounded up to zero keeps its sign
    return torch.where(nearest > numbers, below, nearest)
