"""What each axis asks of its parts. A part is any class with these methods; none inherits from another.

Shapes: B batch, H KV heads, T new tokens, N held tokens, D head_dim; b is 1 or B, h is 1 or H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel


class Scorer(Protocol):
    """Which tokens matter? Scorers hold no state: a token's score lies beside its slot, in the layer."""

    @property
    def n_sinks(self) -> int:
        """So many first tokens are never evicted, whatever they score."""
        ...

    @property
    def window_size(self) -> int:
        """So many newest tokens are never evicted, whatever they score."""
        ...

    @property
    def in_cache_positions(self) -> bool:
        """Whether rotary positions are counted inside the cache, which lets a stream outgrow the model."""
        ...

    @property
    def contiguous(self) -> bool:
        """Whether all held tokens lie, as the model sees them, within the budget's distance of the query.

        Then a window of the model's own that is at least as large as the budget needs no mask.
        """
        ...

    def score(self, key: Tensor, value: Tensor, position: Tensor, layer_idx: int) -> Tensor:
        """New key, value [B, H, T, D] and their positions [1, 1, T] → scores [b, h, T]; the highest are kept.

        b and h are 1 where the batch rows or the heads share one kept set.
        """
        ...


@runtime_checkable
class Observer(Scorer, Protocol):
    """A scorer that is shown attention. Its `score` of a newcomer is what stands before any was received."""

    @property
    def n_observed(self) -> int | None:
        """So many of the newest queries are shown after a prompt; None: all of them."""
        ...

    @property
    def prompt_only(self) -> bool:
        """Whether it can judge a prompt only, where all tokens are still there and in order."""
        ...

    def observe(self, score: Tensor, received: Tensor, age: Tensor, n_queries: int) -> Tensor:
        """Scores [b, h, N] so far and what each held token received from `n_queries` queries [B, H, N] → scores.

        received: attention summed over those queries and the G query heads of a KV head. age [b, h, N]: queries that
        could see the token so far, these included. After a prompt, tokens lie in the order of their positions.
        """
        ...


class Allocation(Protocol):
    """How many tokens per layer?"""

    def __call__(self, kv_budget: int, n_layers: int, *, n_tokens: int | None, n_protected: int) -> list[int]:
        """Mean budget in tokens per KV head → budget of each layer, n_protected tokens of each already spoken for.

        n_tokens: length of the prompt where that is all there is to choose from, None where eviction goes on.
        """
        ...


@runtime_checkable
class HeadAllocation(Allocation, Protocol):
    """How many per head? Asked once, after the prompt."""

    def heads(self, rank: Tensor, n_kept: int, n_protected: int) -> Tensor:
        """rank [B, H, N], the protected on top → tokens of each head [B, H], n_kept on average."""
        ...


class Schedule(Protocol):
    """When is it decided?"""

    @property
    def decides_once(self) -> bool:
        """Whether nothing is evicted any more after the prompt."""
        ...

    def allowed(self, n_tokens: int, kv_budget: int | None, *, prefill: bool) -> int:
        """How many of `n_tokens` may stay, right after the prompt (`prefill`) or in any later step."""
        ...

    def capacity(self, n_tokens: int, kv_budget: int | None) -> int:
        """The most that are held at once on the way to `n_tokens`, from a prompt that is already evicted."""
        ...


class Room(Protocol):
    """Where one storage gets its tensors from."""

    def allocate(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised room of `shape` with the dtype of `like`."""
        ...


class Storage(Protocol):
    """In what numbers are tokens held? One layer's slots: key, value [B, H, n, D]; slot [b, h, 1]."""

    @property
    def overwrites(self) -> bool:
        """Whether one slot can be replaced; not where neighbours share what they are coded with."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that fit before room is allocated anew."""
        ...

    def bytes_of(self, n_held: int) -> int:
        """Bytes that `n_held` tokens take: every batch row and KV head, key and value, and what they are coded with."""
        ...

    def load(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Hold exactly these tokens, with room for `capacity`."""
        ...

    def append(self, n_held: int, key: Tensor, value: Tensor) -> None:
        """Write one token into slot `n_held`."""
        ...

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrite one slot per row and head with the new token."""
        ...

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, H, 1, D] in slots [B, H, 1], in numbers at least as wide as they are held."""
        ...

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        """Overwrite the values alone, in slots [B, H, 1]."""
        ...

    def place_first(self, key: Tensor) -> None:
        """Overwrite the first s keys, where the sinks lie; key [B, H, s, D]."""
        ...

    def tokens(self, n_held: int) -> tuple[Tensor, Tensor]:
        """The held keys and values [B, H, n_held, D]; not for a decode step."""
        ...

    def attend(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """query [B, Hq, 1, D] on all held tokens under mask [b, h, 1, N] → [B, Hq, 1, D]."""
        ...

    def attend_observed(
        self, query: Tensor, n_held: int, mask: Tensor | None, *, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, and what every held token received, summed over the query heads of its KV head [B, H, N]."""
        ...

    def products(self, rows: Tensor, n_held: int) -> Tensor:
        """rows [B, H, G, D] with every held key → [B, H, G, N]."""
        ...

    def weighted(self, weight: Tensor, n_held: int) -> Tensor:
        """Sum of the held values by weight [B, H, G, N] → [B, H, G, D]."""
        ...

    def reorder(self, beam_idx: Tensor) -> None:
        """Give row i what row beam_idx[i] holds."""
        ...


Encoding = Callable[[Room], Storage]  # given where its tensors come from


@runtime_checkable
class Calibrated(Protocol):
    """An encoding that differs between layers, by what `strategies.calibration` found out about the model."""

    def __call__(self, room: Room) -> Storage:
        """An empty storage of no layer, which is only asked what it can do."""
        ...

    def of_layers(self, model: PreTrainedModel, n_layers: int) -> list[Encoding]:
        """Raises ValueError for a model that was not calibrated."""
        ...


Storages = Callable[[int], Storage]  # an empty storage for a layer of the model, by its index


class Placement(Protocol):
    """Where are tokens held?"""

    def storages(self, encodings: Sequence[Encoding]) -> Storages:
        """The storages of one cache, given the encoding of each layer."""
        ...


class OnEvict(Protocol):
    """What happens to the losers? Parts hold no state: a layer keeps their `memory`, a tensor [B, ...] or None."""

    def of_layer(self, layer_idx: int, n_layers: int) -> OnEvict:
        """What is done in this layer."""
        ...

    def keep(
        self, key: Tensor, value: Tensor, kept: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """key, value [B, H, N, D] of which the indices `kept` [b, h, K] stay → [B, H, K, D] each, and the memory."""
        ...

    def replace(self, storage: Storage, n_held: int, slot: Tensor, key: Tensor, memory: Tensor | None) -> Tensor | None:
        """Called with the slots [b, h, 1] that are about to be overwritten, by tokens with `key` → the memory."""
        ...


class Sharing(Protocol):
    """What do layers hold in common?"""

    @property
    def may_evict(self) -> bool:
        """Whether layers may keep different tokens."""
        ...

    def __call__(self, storages: Storages, layers: Sequence[int]) -> Storages:
        """The storages of one cache, some of which may lean on others. Lower layers are made and written first.

        layers: those, in ascending order, that hold no window of the model's own.
        """
        ...
