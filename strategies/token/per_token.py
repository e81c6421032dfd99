"""Per-token quantisation: every key and every value in 8 or 4 bits with one scale of its own, symmetric around zero.

The simple variant that KIVI (arXiv 2402.02750) compares with: a token can be written and replaced alone, but one
channel that stands out makes all others of its token coarse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.folded import folded_attention
from strategies.token.packing import dot, fused, mix, n_slots, pack, unpack
from strategies.token.parts import Room
from strategies.token.split import Coded, can_split, split_attention


class PerTokenStorage:
    """Codes [B, H, W, capacity], W words for D dimensions, and scales [B, H, capacity], of keys and of values.

    x ≈ scale · (code - middle). Scales are held in single precision at least.
    """

    overwrites = True
    codes: tuple[Tensor, ...]
    _capacity: int
    scales: tuple[Tensor, ...]

    def __init__(self, room: Room, *, bits: int = 8) -> None:
        if bits not in (4, 8):
            raise ValueError(f"encoding.bits={bits}: not held per token; valid: 4, 8")
        self.room = room
        self.bits = bits
        self.middle = 2 ** (bits - 1)

    @property
    def capacity(self) -> int:
        return self._capacity

    def bytes_of(self, n_held: int) -> int:
        return sum(tensor[..., :n_held].nbytes for tensor in (*self.codes, *self.scales))

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens [B, H, n, D], with room for `capacity`; room of that size is used again."""
        coded = [_coded(tokens, self.bits) for tokens in (key, value)]
        rows = key.shape[0]
        if not hasattr(self, "codes") or (self._capacity, self.codes[0].shape[0]) != (capacity, rows):
            self.dtype, self.head_dim, self._capacity = key.dtype, key.shape[3], capacity
            self.codes, self.scales = (
                tuple(self.room.allocate((*like.shape[:-1], n_slots(capacity)), like) for like in pair)
                for pair in zip(*coded, strict=True)
            )
        self._write(coded, slice(key.shape[2]))

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        self._write(self._both(key, value), slice(n_held, n_held + 1))

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrite one slot [b, h, 1] per row and head with the new token."""
        for codes, scales, (code, scale) in zip(self.codes, self.scales, self._both(key, value), strict=True):
            codes.scatter_(-1, slot[:, :, None].expand_as(code), code)
            scales.scatter_(-1, slot.expand_as(scale), scale)

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, H, 1, D] in slots [B, H, 1], decoded but not rounded."""
        key, value = (
            self._numbers(codes.gather(-1, slot[:, :, None].expand(*codes.shape[:3], 1)), scales.gather(-1, slot))
            for codes, scales in zip(self.codes, self.scales, strict=True)
        )
        return key, value

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        code, scale = _coded(value, self.bits)
        self.codes[1].scatter_(-1, slot[:, :, None].expand_as(code), code)
        self.scales[1].scatter_(-1, slot, scale)

    def place_first(self, key: Tensor) -> None:
        """Overwrite the first s keys, where the sinks lie; key [B, H, s, D]."""
        code, scale = _coded(key, self.bits)
        self.codes[0][..., : key.shape[2]], self.scales[0][..., : key.shape[2]] = code, scale

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """The held keys and values [B, H, n_held, D], decoded; not for a decode step."""
        return self._decode(0, n_held), self._decode(1, n_held)

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        codes, scale = self.codes[0][..., :n_held], self.scales[0][:, :, None, :n_held]
        return (dot(rows, codes, self.bits) - self.middle * rows.sum(-1, keepdim=True)) * scale

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        folded = weight * self.scales[1][:, :, None, :n_held]
        mixed = mix(folded, self.codes[1][..., :n_held], self.bits, self.head_dim)
        return mixed - self.middle * folded.sum(-1, keepdim=True)

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        if can_split(query, mask, softcap):
            keys, values = map(Coded, self.codes, self.scales)
            return split_attention(query, keys, values, n_held, bits=self.bits, scaling=scaling)
        return self.attend_observed(query, n_held, mask, scaling=scaling, softcap=softcap)[0]

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        return folded_attention(self, query, self.codes[0].shape[1], n_held, mask, scaling=scaling, softcap=softcap)

    def reorder(self, beam_idx: Tensor) -> None:
        self.codes = tuple(codes.index_select(0, beam_idx) for codes in self.codes)
        self.scales = tuple(scales.index_select(0, beam_idx) for scales in self.scales)

    def _both(self, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Codes and scales of keys and of values, coded in one go."""
        codes, scales = fused(_coded, self.codes[0])(torch.stack([key, value]), self.bits)
        return list(zip(codes, scales, strict=True))

    def _decode(self, which: int, n: int) -> Tensor:
        return self._numbers(self.codes[which][..., :n], self.scales[which][..., :n]).to(self.dtype)

    def _numbers(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Codes [B, H, W, n] and scales [B, H, n] → [B, H, n, D]."""
        numbers = unpack(codes, self.bits, self.head_dim, scale.dtype) - self.middle
        return (numbers * scale[:, :, None]).transpose(-1, -2)

    def _write(self, coded: list[tuple[Tensor, Tensor]], where: slice) -> None:
        for codes, scales, (code, scale) in zip(self.codes, self.scales, coded, strict=True):
            codes[..., where], scales[..., where] = code, scale


def _coded(tokens: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """[..., n, D] → codes [..., W, n] and scales [..., n]; all zeros have the scale 1."""
    middle = 2 ** (bits - 1)
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    scale = tokens.abs().amax(-1) / (middle - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return pack(((tokens / scale[..., None]).round() + middle).transpose(-1, -2), bits), scale
