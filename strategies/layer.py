"""One layer of the slot cache: it keeps, evicts and attends.

Attention does not care about the order of slots, since positions are already in the keys. So eviction is the
overwrite of the slot with the lowest score, and once the budget is reached every shape and every Python value of a
decode step is constant: write slot, positions and length live in tensors.

Shapes: B batch, H KV heads, T new tokens, N held tokens, D head_dim; b is 1 or B, h is 1 or H.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from strategies.attention import causal_attention, grouped_attention, visible
from strategies.extensible import Extensible
from strategies.observed import attention_received
from strategies.ragged import NOBODY, RaggedStorage, aligned
from strategies.retention import Retention
from strategies.rope import Prepared, Rotation
from strategies.tensors import offloaded_bytes, tensor_bytes
from strategies.token.parts import Storages


class SlotLayer(CacheLayerMixin):
    """One layer's tokens: storage, positions [b, h, capacity] and scores [b, h, capacity] side by side."""

    is_sliding = False
    supports_early_init = False  # shapes come with the first keys
    positions: Tensor
    scores: Tensor

    def __init__(
        self,
        layer_idx: int,
        retention: Retention,
        storages: Storages,
        *,
        headroom: int,
        rotation: Rotation | None,
    ) -> None:
        if headroom < 1:
            raise ValueError(f"headroom={headroom}: no room for the token that follows a prompt; valid: 1 or more")
        super().__init__()
        self.layer_idx = layer_idx
        self.retention = retention
        self.storages = storages
        self.headroom = headroom
        self.rotation = rotation if retention.scorer.in_cache_positions else None
        self.foreseen: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.storage = self.storages(self.layer_idx)
        self.n_rows = key_states.shape[0]
        self.n_seen = torch.zeros((), dtype=torch.long, device=key_states.device)
        self.n_held = 0
        self.awaits_attention = False
        self.kv_budget = self.retention.kv_budget  # the mean, until the first eviction asks for this layer's share
        self.has_share = False
        self.memory: Tensor | None = None  # of what happens to the losers
        self.sinks: Prepared | None = None  # their keys as they were before anything was evicted
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns the new keys and values untouched: `attend` stores them and attends in one go.

        Raises RuntimeError where the tokens before these were never attended to, because nobody attached the cache.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.awaits_attention:
            raise RuntimeError("this cache is not attached; use: with cache.attached(model): model.generate(...)")
        self.awaits_attention = True
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
        self.awaits_attention = False
        step = self._decode if self.n_held and key.shape[2] == 1 else self._extend
        output = step(query, key, value, sliding_window, how)
        self.n_seen += key.shape[2]
        return output

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: dict[str, Any]) -> Tensor:
        if self.retention.schedule.decides_once:
            self._append(key, value)
        else:
            self._decide(key, value)
        return self._look(query, window, how)

    def _decide(self, key: Tensor, value: Tensor) -> None:
        """Hold one more token, and let another go where the budget says so."""
        position = self.n_seen.view(1, 1, 1)
        score = self.retention.scorer.score(key, value, position, self.layer_idx)
        n_allowed = self._settle(self.n_held + 1, n_new=1, prefill=False)
        if n_allowed < self.n_held:
            self._shrink(n_allowed - 1)
        if n_allowed > self.n_held:
            self._append(key, value)
            self.positions[..., self.n_held - 1 : self.n_held] = position
            self.scores[..., self.n_held - 1 : self.n_held] = score
        else:
            self._replace(key, value, position, score)

    def _look(self, query: Tensor, window: int | None, how: dict[str, Any]) -> Tensor:
        """One query on all held tokens, and what the scorer makes of it."""
        mask = None
        if window is not None and not self.retention.scorer.contiguous:
            mask = visible(self.n_seen.view(1, 1, 1), self.positions[..., : self.n_held], window)
        observer = self.retention.step_observer
        if observer is None:
            return self.storage.attend(query, self.n_held, mask, **how)
        output, received = self.storage.attend_observed(query, self.n_held, mask, **how)
        position, score = self.positions[..., : self.n_held], self.scores[..., : self.n_held]
        score.copy_(observer.observe(score, received, self.n_seen + 1 - position, n_queries=1))
        return output

    def _append(self, key: Tensor, value: Tensor) -> None:
        """Where nothing is decided any more, its position was written when room was made for it."""
        if self.n_held == self.storage.capacity:
            if isinstance(self.storage, Extensible):
                self._reserve(self.storage, self.n_held, self.n_seen)
            else:
                self._load(*self.storage.tokens(self.n_held), self.positions, self.scores, self.n_seen)
        self.storage.append(self.n_held, key, value)
        self.n_held += 1

    def _replace(self, key: Tensor, value: Tensor, position: Tensor, score: Tensor) -> None:
        slot = self.retention.ranked(self.scores, self.positions, newest=position).argmin(-1, keepdim=True)
        self.memory = self.retention.on_evict.replace(self.storage, self.n_held, slot, key, self.memory)
        self.storage.replace(slot, key, value)
        self.positions.scatter_(-1, slot, position.expand_as(slot).int())
        self.scores.scatter_(-1, slot, score.expand_as(slot))
        self._move_sinks(self.n_seen + 1 - self.n_held)

    def _shrink(self, n_kept: int) -> None:
        """Evict several tokens at once, where the schedule has waited for them or this layer's share is a small one."""
        position, score = self.positions[..., : self.n_held], self.scores[..., : self.n_held]
        rank = self.retention.ranked(score, position, newest=self.n_seen)
        self._keep(*self.storage.tokens(self.n_held), position, score, rank, n_kept, self.n_seen)
        self._move_sinks(self.n_seen - n_kept)

    def _extend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: dict[str, Any]) -> Tensor:
        """A prompt, or several tokens appended to one: attend to old and new first, evict after."""
        new = self.n_seen + torch.arange(key.shape[2], device=key.device)
        n_prompt = None if self.n_held else key.shape[2]
        score, self.foreseen = self.foreseen, None
        if score is None:
            score = self._scored(key, value, new[None, None])
        position = new.expand(*score.shape[:2], -1)
        if n_prompt:
            output = causal_attention(query, key, value, sliding_window=window, **how)
        else:
            old_key, old_value = self.storage.tokens(self.n_held)
            key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
            position, score = (
                torch.cat([held[..., : self.n_held], told.expand(*held.shape[:2], -1)], -1)
                for held, told in ((self.positions, position), (self.scores, score))
            )
            output = grouped_attention(query, key, value, visible(new, self._as_seen(position), window), **how)
        n_tokens = key.shape[2]
        n_allowed = self._settle(n_tokens, n_new=len(new), prefill=n_prompt is not None)
        # What will never be decided by attention needs no look at it.
        if self.retention.step_observer or (self.retention.observer and n_allowed < n_tokens):
            score = self._observed(query, key, new, position, score, window, how)
        following = self.n_seen + query.shape[2]
        if n_allowed == n_tokens:
            self._hold(key, value, position, score, following)
        else:
            rank = self.retention.ranked(score, position, newest=following - 1)
            self._keep(key, value, position, score, rank, n_allowed, following)
            self._move_sinks(following - n_allowed)
        return output

    def _scored(self, key: Tensor, value: Tensor, position: Tensor) -> Tensor:
        """Scores [b, h, T] of new tokens as they come; where nothing more will be decided they do not matter."""
        if self.n_held and self.retention.schedule.decides_once:
            return self.scores.new_zeros(*self.scores.shape[:2], key.shape[2])
        return self.retention.scorer.score(key, value, position, self.layer_idx)

    def _observed(
        self,
        query: Tensor,
        key: Tensor,
        new: Tensor,
        position: Tensor,
        score: Tensor,
        window: int | None,
        how: dict[str, Any],
    ) -> Tensor:
        """Scores [b, h, N] once the newest queries, at positions `new` [T], have looked at all tokens at hand."""
        observer = self.retention.observer
        assert observer is not None
        n_queries = min(len(new), observer.n_observed or len(new))
        at = self._as_seen(position) if self.n_held else None
        received = attention_received(query[:, :, -n_queries:], key, new[-n_queries:], at, sliding_window=window, **how)
        return observer.observe(score, received, self.n_seen + len(new) - position, n_queries)

    def _settle(self, n_tokens: int, *, n_new: int, prefill: bool) -> int:
        """How many of `n_tokens` may stay; with the first eviction this layer's own share of the budget applies."""
        schedule = self.retention.schedule
        n_allowed = schedule.allowed(n_tokens, self.kv_budget, prefill=prefill)
        if self.has_share or n_allowed == n_tokens:
            return n_allowed
        self.kv_budget = self.retention.share(n_new if prefill and schedule.decides_once else None)
        self.has_share = True
        return schedule.allowed(n_tokens, self.kv_budget, prefill=prefill)

    def _keep(
        self,
        key: Tensor,
        value: Tensor,
        position: Tensor,
        score: Tensor,
        rank: Tensor,
        n_kept: int,
        following: Tensor,
    ) -> None:
        """Hold the `n_kept` tokens with the highest ranks; in the order of slots, so that sinks stay first."""
        heads = self.retention.heads
        if heads is None or rank.shape[1] == 1 or rank.is_meta:  # shapes alone do not say which head gets how many
            kept = rank.topk(n_kept, dim=-1).indices.sort(-1).values
        else:  # every row shares out for itself, also where all have the same scores
            rank, position, score = (tokens.expand(len(key), -1, -1) for tokens in (rank, position, score))
            n_held = heads(rank, n_kept)
            kept = aligned(rank, n_held)
            self.storage = RaggedStorage(partial(self.storages, self.layer_idx), kept.shape[-1] - n_held)
        there = kept.clamp(min=0)
        key, value, self.memory = self.retention.on_evict.keep(key, value, there, self.memory)
        position = position.gather(-1, there).where(kept >= 0, NOBODY)
        self._load(key, value, position, score.gather(-1, there), following)

    def _hold(self, key: Tensor, value: Tensor, position: Tensor, score: Tensor, following: Tensor) -> None:
        """Hold these tokens, of which the first are held already, where they stay if the storage can do that."""
        if not self.n_held or not isinstance(self.storage, Extensible):
            self._load(key, value, position, score, following)
            return
        n_before, n_tokens = self.n_held, key.shape[2]
        if n_tokens > self.storage.capacity:
            self._reserve(self.storage, n_tokens, self.n_seen)
        self.storage.append(n_before, key[:, :, n_before:], value[:, :, n_before:])
        self.positions[..., n_before:n_tokens] = position[..., n_before:]
        self.scores[..., :n_tokens] = score
        self.n_held = n_tokens

    def _reserve(self, storage: Extensible, n_tokens: int, following: Tensor) -> None:
        """Room for so many tokens and those that may follow; what is held stays where it is."""
        capacity = self.retention.schedule.capacity(n_tokens + self.headroom, self.kv_budget)
        storage.reserve(capacity)
        self.positions = _numbered(self.positions[..., : self.n_held], capacity, following)
        self.scores = _with_room(self.scores[..., : self.n_held], capacity)

    def _load(self, key: Tensor, value: Tensor, position: Tensor, score: Tensor, following: Tensor) -> None:
        """Hold exactly these tokens, with room for those that may follow, from that position on, before the next
        allocation.
        """
        self.n_held = key.shape[2]
        capacity = self.retention.schedule.capacity(self.n_held + self.headroom, self.kv_budget)
        self.storage.load(key, value, capacity)
        self.positions, self.scores = _numbered(position.int(), capacity, following), _with_room(score, capacity)

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

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept."""
        return self.storage.bytes_of(self.n_held) if self.is_initialized else 0

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated on the model's device: kept tokens, room for more, positions, scores, sinks."""
        return tensor_bytes(self) if self.is_initialized else 0

    @property
    def bytes_offloaded(self) -> int:
        """Bytes that are allocated elsewhere, by a placement that says so."""
        return offloaded_bytes(self) if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Tokens seen, not tokens held: the next token's position. Waits for the device."""
        return int(self.n_seen) if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # nobody builds a mask from them: the layer masks by the positions it holds

    def get_max_length(self) -> int:
        return -1  # any number of tokens may be seen

    def reset(self) -> None:
        if self.is_initialized:
            del self.storage, self.positions, self.scores, self.n_seen, self.sinks, self.memory
        self.foreseen = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.storage.reorder(beam_idx)
        if self.positions.shape[0] > 1 or len(beam_idx) > self.n_rows:  # rows that were one may part from now on
            self.positions, self.scores = (
                tokens.expand(self.n_rows if len(tokens) == 1 else -1, -1, -1)[beam_idx]
                for tokens in (self.positions, self.scores)
            )
        if self.memory is not None:
            self.memory = self.memory[beam_idx]
        if self.sinks is not None:
            turning, quarter, rest = self.sinks
            self.sinks = turning[beam_idx], quarter[beam_idx], rest[beam_idx]
        self.n_rows = len(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest -tokens_to_remove tokens, as where a draft was rejected.

        Raises ValueError where a token was evicted, and for a storage that cannot let tokens go.
        """
        tokens_to_remove = int(tokens_to_remove)  # Transformers 5.17 gives a tensor, which `n_held` would share
        storage = self.storage if self.is_initialized else None
        if not isinstance(storage, Extensible) or self.n_held < self.get_seq_length():
            raise ValueError(f"crop({tokens_to_remove}): an evicted token cannot be brought back; valid: a new cache")
        if not -self.n_held < tokens_to_remove <= 0:
            raise ValueError(f"crop({tokens_to_remove}): {self.n_held} tokens are held; "
                             f"valid: {1 - self.n_held} to 0")  # fmt: skip
        self.n_held += tokens_to_remove
        self.n_seen = self.n_seen + tokens_to_remove
        storage.truncate(self.n_held)


def _with_room(tokens: Tensor, capacity: int) -> Tensor:
    """[b, h, n] copied to the front of a new [b, h, capacity]."""
    roomy = tokens.new_empty((*tokens.shape[:2], capacity))
    roomy[..., : tokens.shape[-1]] = tokens
    return roomy


def _numbered(position: Tensor, capacity: int, following: Tensor) -> Tensor:
    """As `_with_room`, and the room holds the positions [] of those that will follow, one after another."""
    roomy, n_held = _with_room(position, capacity), position.shape[-1]
    roomy[..., n_held:] = following + torch.arange(capacity - n_held, device=position.device)
    return roomy
