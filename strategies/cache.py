"""The slot cache: preallocated, written in place, evicting by overwriting one slot.

Attention does not care about the order of slots, since positions are already in the keys. So eviction is the
overwrite of the slot with the lowest score, and once the budget is reached every shape and every Python value of a
decode step is constant: write slot, positions and length live in tensors.

Shapes: B batch, H KV heads, T new tokens, N held tokens, D head_dim; b is 1 or B, h is 1 or H.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from strategies.attention import attached, causal_attention, grouped_attention, visible
from strategies.rope import Rotation, rotation_of
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.drop import Drop
from strategies.token.every_step import EveryStep
from strategies.token.recency import RecencyScorer
from strategies.token.recompute import Recompute
from strategies.token.schedule import Schedule
from strategies.token.scorer import Scorer
from strategies.token.uniform import UniformAllocation
from strategies.token.unshared import Unshared


@dataclass(frozen=True)
class Retention:
    """What a layer keeps: at most `kv_budget` tokens per KV head (None: all), chosen by the scorer."""

    kv_budget: int | None
    scorer: Scorer
    schedule: Schedule
    on_evict: Drop


class SlotLayer(CacheLayerMixin):
    """One layer's tokens: storage, positions [b, h, capacity] and scores [b, h, capacity] side by side."""

    is_sliding = False
    supports_early_init = False  # shapes come with the first keys

    def __init__(
        self,
        layer_idx: int,
        retention: Retention,
        storage: Callable[[], DenseStorage],
        *,
        headroom: int,
        rotation: Rotation | None,
    ) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.retention = retention
        self.make_storage = storage
        self.headroom = headroom
        self.rotation = rotation if retention.scorer.in_cache_positions else None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.storage = self.make_storage()
        self.n_seen = torch.zeros((), dtype=torch.long, device=key_states.device)
        self.n_held = 0
        self.sinks: tuple[Tensor, Tensor] | None = None  # their keys as they were before anything was evicted
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns the new keys and values untouched: `attend` stores them and attends in one go."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """query [B, Hq, T, D] and the new key, value [B, H, T, D] → [B, Hq, T, D]; the new tokens are held after."""
        how = {"scaling": scaling, "softcap": softcap}
        step = self._decode if self.n_held and key.shape[2] == 1 else self._extend
        output = step(query, key, value, sliding_window, how)
        self.n_seen += key.shape[2]
        return output

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: dict[str, Any]) -> Tensor:
        position = self.n_seen.view(1, 1, 1)
        score = self.retention.scorer.score(key, value, position, self.layer_idx)
        if self._allowed(self.n_held + 1) > self.n_held:
            self._append(key, value, position, score)
        else:
            self._replace(key, value, position, score)
        mask = None
        if window is not None and not self.retention.scorer.contiguous:
            mask = visible(position, self.positions[..., : self.n_held], window)
        return self.storage.attend(query, self.n_held, mask, **how)

    def _append(self, key: Tensor, value: Tensor, position: Tensor, score: Tensor) -> None:
        if self.n_held == self.storage.capacity:
            self._load(*self.storage.tokens(self.n_held), self.positions, self.scores)
        self.storage.append(self.n_held, key, value)
        self.positions[..., self.n_held : self.n_held + 1] = position
        self.scores[..., self.n_held : self.n_held + 1] = score
        self.n_held += 1

    def _replace(self, key: Tensor, value: Tensor, position: Tensor, score: Tensor) -> None:
        slot = self._ranked(self.scores, self.positions, newest=position).argmin(-1, keepdim=True)
        self.retention.on_evict(self.storage, slot)
        self.storage.replace(slot, key, value)
        self.positions.scatter_(-1, slot, position.expand_as(slot))
        self.scores.scatter_(-1, slot, score)
        self._move_sinks(self.n_seen + 1 - self.n_held)

    def _extend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: dict[str, Any]) -> Tensor:
        """A prompt, or several tokens appended to one: attend to old and new first, evict after."""
        new = self.n_seen + torch.arange(key.shape[2], device=key.device)[None, None]
        score = self.retention.scorer.score(key, value, new, self.layer_idx)
        position = new.expand(*score.shape[:2], -1)
        prefill = self.n_held == 0
        if prefill:
            output = causal_attention(query, key, value, sliding_window=window, **how)
        else:
            old_key, old_value = self.storage.tokens(self.n_held)
            key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
            position = torch.cat([self.positions[..., : self.n_held], position], -1)
            score = torch.cat([self.scores[..., : self.n_held], score], -1)
            output = grouped_attention(query, key, value, visible(new, self._as_seen(position), window), **how)
        self._retain(key, value, position, score, n_seen=self.n_seen + query.shape[2], prefill=prefill)
        return output

    def _retain(
        self, key: Tensor, value: Tensor, position: Tensor, score: Tensor, *, n_seen: Tensor, prefill: bool
    ) -> None:
        n_tokens = key.shape[2]
        n_kept = self._allowed(n_tokens, prefill=prefill)
        if n_kept == n_tokens:
            self._load(key, value, position, score)
            return
        rank = self._ranked(score, position, newest=n_seen - 1)
        kept = rank.topk(n_kept, dim=-1).indices.sort(-1).values  # by position, so that sinks come first
        index = kept[..., None].expand(*key.shape[:2], -1, key.shape[3])
        self._load(key.gather(2, index), value.gather(2, index), position.gather(-1, kept), score.gather(-1, kept))
        self._move_sinks(n_seen - n_kept)

    def _load(self, key: Tensor, value: Tensor, position: Tensor, score: Tensor) -> None:
        """Hold exactly these tokens, with room for those that may follow before the next allocation."""
        self.n_held = key.shape[2]
        capacity = self._allowed(self.n_held + self.headroom)
        self.storage.load(key, value, capacity)
        self.positions, self.scores = _with_room(position, capacity), _with_room(score, capacity)

    def _move_sinks(self, n_evicted: Tensor) -> None:
        """Close the gap that eviction left, as the model sees it, by moving the sinks up to the window."""
        if self.rotation is None:
            return
        if self.sinks is None:
            key, _ = self.storage.tokens(self.retention.scorer.n_sinks)
            self.sinks = self.rotation.prepare(key)
        self.storage.place_first(self.rotation(self.sinks, n_evicted))

    def _as_seen(self, position: Tensor) -> Tensor:
        """Positions [b, h, N] as the model sees them: moved sinks lie right before the oldest other token."""
        if self.sinks is None:
            return position
        n_evicted = self.n_seen - self.n_held
        return torch.where(position < self.retention.scorer.n_sinks, position + n_evicted, position)

    def _ranked(self, score: Tensor, position: Tensor, *, newest: Tensor) -> Tensor:
        """Scores with the protected tokens on top: the sinks, and the window that ends at position `newest`."""
        scorer = self.retention.scorer
        top = torch.finfo(score.dtype).max if score.is_floating_point() else torch.iinfo(score.dtype).max
        if scorer.n_sinks:
            score = score.masked_fill(position < scorer.n_sinks, top)
        if scorer.window_size:
            score = score.masked_fill(position > newest - scorer.window_size, top)
        return score

    def _allowed(self, n_tokens: int, *, prefill: bool = False) -> int:
        return self.retention.schedule.allowed(n_tokens, self.retention.kv_budget, prefill=prefill)

    @property
    def bytes_logical(self) -> int:
        return self.n_held * self.storage.bytes_per_token if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Tokens seen, not tokens held: the next token's position. Waits for the device."""
        return int(self.n_seen) if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # nobody builds a mask from them: the layer masks by the positions it holds

    def get_max_length(self) -> int:
        return -1  # any number of tokens may be seen

    def reset(self) -> None:
        if self.is_initialized:
            del self.storage, self.positions, self.scores, self.n_seen, self.sinks
        self.n_held = 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.storage.reorder(beam_idx)
        if self.positions.shape[0] > 1:
            self.positions, self.scores = self.positions[beam_idx], self.scores[beam_idx]
        if self.sinks is not None:
            self.sinks = self.sinks[0][beam_idx], self.sinks[1][beam_idx]

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(f"crop({tokens_to_remove}): an evicted token cannot be brought back; valid: a new cache")


class SlotCache(Cache):
    """A KV cache whose layers own their attention. Attach it, then use it as any Transformers cache.

    ```python
    with cache.attached(model):
        model.generate(input_ids, past_key_values=cache)
    ```
    """

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[SlotCache]:
        """Let this cache own the attention of `model` for a while; see `strategies.attention.attached`."""
        return attached(model, self)

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept, all layers and batch rows."""
        return sum(
            layer.bytes_logical if isinstance(layer, SlotLayer) else _tensor_bytes(layer) for layer in self.layers
        )

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated: kept tokens, room for the next ones, positions, scores, sinks."""
        return sum(_tensor_bytes(layer) for layer in self.layers)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0  # only masks ask, and there are none; answering truly would wait for the device in every step


def build_cache(
    model: PreTrainedModel,
    *,
    kv_budget: int | None,
    headroom: int = 256,
    scorer: Scorer,
    allocation: UniformAllocation,
    schedule: Schedule,
    on_evict: Drop,
    encoding: Callable[[Contiguous], DenseStorage],
    sharing: Unshared,
    placement: Contiguous | Recompute,
) -> SlotCache | None:
    """An empty cache for `model` from one part per axis, or None where nothing is to be held (`placement=recompute`).

    `kv_budget`: tokens per KV head, mean over layers; None keeps all. `headroom`: tokens that may follow a prompt
    before storage is allocated anew. Raises ValueError for a budget that the protected tokens alone would fill, and
    for a model whose layers cannot be held in slots.
    """
    if isinstance(placement, Recompute):
        if kv_budget is not None:
            raise ValueError(f"placement=recompute holds nothing, so kv_budget={kv_budget} means nothing; valid: null")
        return None
    protected = scorer.n_sinks + scorer.window_size
    if kv_budget is not None and kv_budget <= protected:
        raise ValueError(f"kv_budget={kv_budget}: scorer protects {protected} tokens; valid: more than {protected}")
    stock = DynamicCache(config=model.config).layers
    windows = [_native_window(layer, model) for layer in stock]
    budgets = [None] * len(stock) if kv_budget is None else allocation(kv_budget, len(stock))
    rotation = rotation_of(model) if scorer.in_cache_positions else None
    # Where only some layers are sliding, those are small already and are left as the model has them.
    only_sliding = all(windows)

    def make_layer(layer_idx: int) -> Any:
        if windows[layer_idx] is None:
            return stock[layer_idx]
        retention = Retention(budgets[layer_idx], scorer, schedule, on_evict)
        if window := windows[layer_idx]:
            retention = _within(window, retention, follow=only_sliding)
        return SlotLayer(layer_idx, retention, lambda: encoding(placement), headroom=headroom, rotation=rotation)

    return SlotCache(layers=sharing(make_layer, len(stock)))


def _native_window(layer: Any, model: PreTrainedModel) -> int | None:
    """The model's own window of this layer, 0 without one; None for a recurrent layer, which holds no tokens.

    Raises ValueError for other kinds of attention state.
    """
    if type(layer) is DynamicLayer:
        return 0
    if type(layer) is DynamicSlidingWindowLayer and getattr(model.config, "attention_chunk_size", None) is None:
        return int(layer.sliding_window)
    if not isinstance(layer, CacheLayerMixin):
        return None
    raise ValueError(f"model={type(model).__name__}: layers of kind {type(layer).__name__} cannot be held in slots; "
                     "valid: full attention, sliding windows, recurrent layers")  # fmt: skip


def _within(window: int, retention: Retention, *, follow: bool) -> Retention:
    """A sliding layer holds its own window, or less where a technique that is applied to it says so."""
    if follow and retention.kv_budget is not None and retention.kv_budget < window:
        return retention
    return Retention(window, RecencyScorer(), EveryStep(), Drop())


def _with_room(tokens: Tensor, capacity: int) -> Tensor:
    """[b, h, n] copied to the front of a new [b, h, capacity]."""
    roomy = tokens.new_empty((*tokens.shape[:2], capacity))
    roomy[..., : tokens.shape[-1]] = tokens
    return roomy


def _tensor_bytes(holder: Any) -> int:
    """Bytes of all storages that an object's attributes hold, each storage once however many tensors view it."""
    storages: dict[int, int] = {}
    pending = [holder]
    while pending:
        for held in vars(pending.pop()).values():
            items = held.values() if isinstance(held, dict) else held if isinstance(held, tuple) else [held]
            for item in items:
                if isinstance(item, Tensor):
                    storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
                elif isinstance(item, DenseStorage):
                    pending.append(item)
    return sum(storages.values())
