"""The slot cache of a whole model: one layer per layer, assembled from one part per axis."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from strategies.attention import attached
from strategies.composition import require_composable
from strategies.layer import SlotLayer
from strategies.model.states import require_attention
from strategies.retention import Retention
from strategies.rope import rotation_of
from strategies.tensors import offloaded_bytes, tensor_bytes
from strategies.token.contiguous import Contiguous
from strategies.token.dense import DenseStorage
from strategies.token.drop import Drop
from strategies.token.every_step import EveryStep
from strategies.token.oracle import foresees, future_attention
from strategies.token.parts import (
    Allocation,
    Calibrated,
    Encoding,
    HeadAllocation,
    OnEvict,
    Placement,
    Schedule,
    Scorer,
    Sharing,
)
from strategies.token.recency import RecencyScorer
from strategies.token.recompute import Recompute


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
    def attention_kwargs(self) -> dict[str, Any]:
        """What the model's forward pass hands on to the attention, so that this cache is found without a lookup."""
        return {"slot_cache": self}

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept, all layers and batch rows."""
        return sum(
            layer.bytes_logical if isinstance(layer, SlotLayer) else tensor_bytes(layer) for layer in self.layers
        )

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated for it on the model's device, all layers and batch rows."""
        return tensor_bytes(*self.layers)

    @property
    def bytes_offloaded(self) -> int:
        """Bytes that are allocated for it elsewhere, in the host's memory or a file; 0 but for `placement=offload`."""
        return offloaded_bytes(*self.layers)

    def foresee(self, model: PreTrainedModel, ids: Tensor, n_prompt: int) -> None:
        """Show a scorer that asks for it what follows a prompt: `ids` [B, T] whose first `n_prompt` are the prompt.

        Called before the prompt is fed. Nothing happens where no scorer asks.
        """
        layers = [layer for layer in self.layers if isinstance(layer, SlotLayer) and foresees(layer.retention.scorer)]
        if layers:
            for layer, received in zip(layers, future_attention(model, self, ids, n_prompt), strict=True):
                layer.foreseen = received

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0  # only masks ask, and there are none; answering truly would wait for the device in every step


def build_cache(
    model: PreTrainedModel,
    *,
    kv_budget: int | None,
    headroom: int = 256,
    scorer: Scorer,
    allocation: Allocation,
    schedule: Schedule,
    on_evict: OnEvict,
    encoding: Encoding,
    sharing: Sharing,
    placement: Placement | Recompute,
) -> SlotCache | None:
    """An empty cache for `model` from one part per axis, or None where nothing is to be held (`placement=recompute`).

    `kv_budget`: tokens per KV head, mean over layers; None keeps all. `headroom`: tokens that may follow a prompt
    before storage is allocated anew. Raises ValueError for parts that do not go together, a budget that the protected
    tokens alone would fill, a model whose layers cannot be held in slots, and one that was not calibrated where the
    encoding asks for it.
    """
    if isinstance(placement, Recompute):
        if kv_budget is not None:
            raise ValueError(f"placement=recompute holds nothing, so kv_budget={kv_budget} means nothing; valid: null")
        return None
    require_attention(model)
    require_composable(scorer, allocation, schedule, on_evict, encoding, sharing, placement)
    protected = scorer.n_sinks + scorer.window_size
    if kv_budget is not None and kv_budget <= protected:
        raise ValueError(f"kv_budget={kv_budget}: scorer protects {protected} tokens; valid: more than {protected}")
    stock = DynamicCache(config=model.config).layers
    windows = [_native_window(layer, model) for layer in stock]
    rotation = rotation_of(model) if scorer.in_cache_positions else None
    per_layer = encoding.of_layers(model, len(stock)) if isinstance(encoding, Calibrated) else [encoding] * len(stock)
    storages = sharing(placement.storages(per_layer), [i for i, window in enumerate(windows) if window == 0])
    dense = Contiguous().storages([DenseStorage] * len(stock))
    # A window of the model's own takes slots that can be replaced, and tokens of this layer alone.
    windowed = encoding(Contiguous()).overwrites and sharing.may_evict
    # Where only some layers are sliding, those are small already and are left as the model has them.
    only_sliding = all(windows)
    if only_sliding and not windowed:
        raise ValueError(f"model={type(model).__name__}: every layer has a window, and replaces its slots one by one; "
                         "valid: encoding and sharing that allow it, or a model that holds all tokens")  # fmt: skip

    def share(layer_idx: int, n_tokens: int | None) -> int | None:
        if kv_budget is None:
            return None
        shares = allocation(kv_budget, len(stock), n_tokens=n_tokens, n_protected=protected)
        return max(shares[layer_idx], protected, 1)

    heads = partial(allocation.heads, n_protected=protected) if isinstance(allocation, HeadAllocation) else None

    def make_layer(layer_idx: int) -> Any:
        if windows[layer_idx] is None:
            return stock[layer_idx]
        losers = on_evict.of_layer(layer_idx, len(stock))
        retention = Retention(kv_budget, partial(share, layer_idx), scorer, schedule, losers, heads)
        held = storages
        if window := windows[layer_idx]:
            retention = _within(window, retention, follow=only_sliding)
            held = storages if windowed else dense
        return SlotLayer(layer_idx, retention, held, headroom=headroom, rotation=rotation)

    return SlotCache(layers=[make_layer(layer_idx) for layer_idx in range(len(stock))])


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
    return Retention(window, lambda n_tokens: window, RecencyScorer(), EveryStep(), Drop())
