"""KIVI: keys are coded per channel, values per token, the newest tokens are held as they are (arXiv 2402.02750)."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.append_only import AppendOnly
from strategies.folded import folded_attention
from strategies.token.kivi_codes import ChannelCodes, TokenCodes
from strategies.token.packing import WIDTHS
from strategies.token.parts import Room
from strategies.token.split import KEYS_OF_A_SCALE, Coded, can_split, split_attention


class KiviStorage(AppendOnly):
    """Old tokens in codes, whole groups at a time; the newest n_recent … n_recent + group_size - 1 as they are.

    As in the paper, keys share a scale and a zero point between `group_size` tokens of a channel, values between
    `group_size` channels of a token. Where the paper's code lets keys wait for a whole residual of 128 tokens and codes
    one value in every step, here both are coded together, a group at a time. Tokens stay in order.
    """

    def __init__(self, room: Room, *, bits: int = 4, group_size: int = 32, n_recent: int = 128) -> None:
        if bits not in WIDTHS:
            raise ValueError(f"encoding.bits={bits}: cannot be packed; valid: {', '.join(map(str, WIDTHS))}")
        if group_size < 1 or n_recent < 0:
            raise ValueError(f"encoding.group_size={group_size}, encoding.n_recent={n_recent}: not possible; "
                             "valid: 1 or more, 0 or more")  # fmt: skip
        self.room = room
        self.bits, self.group_size, self.n_recent = bits, group_size, n_recent

    @property
    def capacity(self) -> int:
        return self._capacity

    def bytes_of(self, n_held: int) -> int:
        batch, n_kv_heads, _, head_dim = self.recent[0].shape
        n_coded = self._n_coded(n_held)
        dense = 2 * batch * n_kv_heads * head_dim * self.recent[0].element_size()
        return (n_held - n_coded) * dense + self.keys.bytes_of(n_coded) + self.values.bytes_of(n_coded)

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens [B, H, n, D], in order, with room for `capacity`."""
        n_tokens, head_dim = key.shape[2:]
        if head_dim % self.group_size:
            raise ValueError(f"encoding.group_size={self.group_size}: does not divide head_dim={head_dim}; "
                             "valid: a divisor of it")  # fmt: skip
        self._capacity = capacity
        how: dict[str, int] = {"bits": self.bits, "group_size": self.group_size}
        n_coded = self._n_coded(n_tokens)
        self.keys = ChannelCodes(self.room, self._n_coded(capacity), key, **how)
        self.values = TokenCodes(self.room, self._n_coded(capacity), value, **how)
        self.keys.write(0, key[:, :, :n_coded])
        self.values.write(0, value[:, :, :n_coded])
        n_waiting = min(capacity, self.n_recent + self.group_size)
        shape = (*key.shape[:2], n_waiting, head_dim)
        self.recent = self.room.allocate(shape, key), self.room.allocate(shape, value)
        for recent, tokens in zip(self.recent, (key, value), strict=True):
            recent[:, :, : n_tokens - n_coded] = tokens[:, :, n_coded:]

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        """Write the newest token, once the oldest of a full residual are coded as one more group."""
        n_coded = self._n_coded(n_held)
        for recent, token in zip(self.recent, (key, value), strict=True):
            recent[:, :, n_held - n_coded : n_held - n_coded + 1] = token
        if self._n_coded(n_held + 1) > n_coded:
            self.keys.write(n_coded, self.recent[0][:, :, : self.group_size])
            self.values.write(n_coded, self.recent[1][:, :, : self.group_size])
            for recent in self.recent:
                recent[:, :, : self.n_recent] = recent[:, :, self.group_size :].clone()

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """The held keys and values [B, H, n_held, D], decoded; not for a decode step."""
        n_coded = self._n_coded(n_held)
        coded = self.keys.decoded(n_coded), self.values.decoded(n_coded)
        key, value = (
            torch.cat([old.to(recent.dtype), recent[:, :, : n_held - n_coded]], dim=2)
            for old, recent in zip(coded, self.recent, strict=True)
        )
        return key, value

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        n_coded = self._n_coded(n_held)
        recent = self.recent[0][:, :, : n_held - n_coded].to(rows.dtype)
        return torch.cat([self.keys.products(rows, n_coded), rows @ recent.transpose(-1, -2)], dim=-1)

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        n_coded = self._n_coded(n_held)
        recent = self.recent[1][:, :, : n_held - n_coded].to(weight.dtype)
        return self.values.weighted(weight[..., :n_coded], n_coded) + weight[..., n_coded:] @ recent

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        if self.group_size == KEYS_OF_A_SCALE and can_split(query, mask, softcap):
            n_coded = self._n_coded(n_held)
            keys, values = Coded(*self.keys.held), Coded(*self.values.held)
            return split_attention(
                query, keys, values, n_coded, self.recent, n_held - n_coded, bits=self.bits, scaling=scaling
            )
        return self.attend_observed(query, n_held, mask, scaling=scaling, softcap=softcap)[0]

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        return folded_attention(self, query, self.recent[0].shape[1], n_held, mask, scaling=scaling, softcap=softcap)

    def reorder(self, beam_idx: Tensor) -> None:
        self.recent = self.recent[0].index_select(0, beam_idx), self.recent[1].index_select(0, beam_idx)
        self.keys.reorder(beam_idx)
        self.values.reorder(beam_idx)

    def _n_coded(self, n_tokens: int) -> int:
        """Of so many tokens, those that are in codes: whole groups, and n_recent are not."""
        return max(n_tokens - self.n_recent, 0) // self.group_size * self.group_size
