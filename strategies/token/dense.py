"""Dense encoding: keys and values in the model's own numbers, in preallocated slots."""

from __future__ import annotations

from torch import Tensor

from strategies.attention import grouped_attention
from strategies.observed import observed_attention
from strategies.token.parts import Room


class DenseStorage:
    """Slots [B, H, capacity, D] that are written in place; nothing is ever concatenated, rolled or gathered per step.

    Shapes: key, value [B, H, n, D]; slot [b, h, 1] with b in (1, B) and h in (1, H).
    """

    overwrites = True
    keys: Tensor
    values: Tensor

    def __init__(self, room: Room) -> None:
        self.room = room

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def bytes_of(self, n_held: int) -> int:
        """Bytes that `n_held` tokens take: every batch row and KV head, key and value."""
        return self.keys[:, :, :n_held].nbytes + self.values[:, :, :n_held].nbytes

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens, with room for `capacity`; an allocation of that size is used again."""
        n_tokens = key.shape[2]
        shape = (*key.shape[:2], capacity, key.shape[3])
        if not hasattr(self, "keys") or self.keys.shape != shape:
            self.keys = self.room.allocate(shape, like=key)
            self.values = self.room.allocate(shape, like=value)
        self.keys[:, :, :n_tokens] = key
        self.values[:, :, :n_tokens] = value

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        self.keys[:, :, n_held : n_held + key.shape[2]] = key
        self.values[:, :, n_held : n_held + key.shape[2]] = value

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrite one slot per row and head with the new token."""
        if slot.shape[:2] == (1, 1):  # one slot for all: a plain row copy
            self.keys.index_copy_(2, slot.view(1), key)
            self.values.index_copy_(2, slot.view(1), value)
        else:
            index = slot[..., None].expand_as(key)
            self.keys.scatter_(2, index, key)
            self.values.scatter_(2, index, value)

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, H, 1, D] in slots [B, H, 1]."""
        index = slot[..., None].expand(-1, -1, -1, self.keys.shape[3])
        return self.keys.gather(2, index), self.values.gather(2, index)

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        self.values.scatter_(2, slot[..., None].expand_as(value), value)

    def place_first(self, key: Tensor) -> None:
        """Overwrite the first s keys, where the sinks lie; key [B, H, s, D]."""
        self.keys[:, :, : key.shape[2]] = key

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """Views of the held keys and values [B, H, n_held, D]."""
        return self.keys[:, :, :n_held], self.values[:, :, :n_held]

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens → [B, Hq, 1, D]."""
        key, value = self.tokens(n_held)
        return grouped_attention(query, key, value, mask, scaling=scaling, softcap=softcap)

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        key, value = self.tokens(n_held)
        return observed_attention(query, key, value, mask, scaling=scaling, softcap=softcap)

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        """rows [B, H, G, D] with every held key → [B, H, G, N]; multiplied in the numbers that are held."""
        return (rows.to(self.keys.dtype) @ self.keys[:, :, :n_held].transpose(-1, -2)).to(rows.dtype)

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        """Sum of the held values by weight [B, H, G, N] → [B, H, G, D]."""
        return (weight.to(self.values.dtype) @ self.values[:, :, :n_held]).to(weight.dtype)

    def reorder(self, beam_idx: Tensor) -> None:
        self.keys = self.keys.index_select(0, beam_idx)
        self.values = self.values.index_select(0, beam_idx)
