"""The one attention function: it hands every layer's queries, keys and values to the cache layer that owns them.

Shapes: B batch, Hq query heads, H KV heads, G = Hq / H, T new tokens, N held tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

if TYPE_CHECKING:
    from strategies.cache import SlotCache

# One permanent name: a fresh name per cache would recompile every time and stop compiling at the eighth.
NAME = "slot_cache"

# `generate()` refuses keyword arguments it does not know, so the cache reaches the attention function this way.
_attached: ContextVar[SlotCache | None] = ContextVar("attached_slot_cache", default=None)

# Keywords that models pass along and that change nothing for a causal decoder in evaluation mode.
_HARMLESS = {"position_ids", "use_cache", "is_causal", "output_attentions", "output_hidden_states", "return_dict",
             "output_router_logits"}  # fmt: skip

_HALVES = (torch.bfloat16, torch.float16)
# What splits keys between all multiprocessors. cuDNN's kernel, which torch prefers on newer GPUs, does not for a single
# query, and is planned anew, for tens of milliseconds, for every number of keys.
_SPLITTING = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


@contextmanager
def attached(model: PreTrainedModel, cache: SlotCache) -> Iterator[SlotCache]:
    """Let `cache` own the attention of `model`; the model's own implementation comes back in the end.

    Raises ValueError for a model whose attention cannot be replaced, naming it.
    """
    before = model.config._attn_implementation
    token = _attached.set(cache)
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:  # Transformers only warns
            raise ValueError(f"model={type(model).__name__}: its attention cannot be replaced; valid: a causal LM "
                             "that Transformers dispatches through AttentionInterface")  # fmt: skip
        yield cache
    finally:
        _attached.reset(token)
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    slot_cache: SlotCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, Hq, T, D], the *new* key and value [B, H, T, D] → ([B, T, Hq, D], None).

    Raises ValueError for a keyword whose meaning it does not know, such as learned attention sinks.
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if unknown or dropout:
        raise ValueError(f"{type(module).__name__}: attention with {', '.join(unknown) or 'dropout'} is not supported")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    cache = slot_cache if slot_cache is not None else _attached.get()
    if key.shape[-1] != value.shape[-1]:  # latent attention, before its values are padded or absorbed
        raise ValueError(f"{type(module).__name__}: keys of {key.shape[-1]} and values of {value.shape[-1]} dimensions "
                         "are not supported")  # fmt: skip
    if cache is None:
        output = causal_attention(query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap)
    else:
        layer: Any = cache.layers[module.layer_idx]  # type: ignore[index]
        output = layer.attend(query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap)
    return output.transpose(1, 2).contiguous(), None


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of a prompt on itself: the stock fused kernel wherever the mask is plainly causal. → [B, Hq, T, D]"""
    n_new = query.shape[2]
    if softcap is None and (sliding_window is None or n_new <= sliding_window):
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, is_causal=n_new > 1, scale=scaling, enable_gqa=grouped)
    position = torch.arange(n_new, device=query.device)
    mask = visible(position, position, sliding_window)
    return grouped_attention(query, key, value, mask[None, None], scaling=scaling, softcap=softcap)


def visible(query_position: Tensor, key_position: Tensor, sliding_window: int | None) -> Tensor:
    """Causal and, with a window, recent enough: query_position [..., T], key_position [..., N] → bool [..., T, N]."""
    distance = query_position[..., :, None] - key_position[..., None, :]
    return distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """query [B, Hq, T, D] on key, value [B, H, N, D] under mask [b, h, T, N] (b, h broadcast) → [B, Hq, T, D].

    The G query heads of a KV head become rows of one product, so keys and values are read once and never repeated.
    """
    batch, n_heads, n_new, head_dim = query.shape
    n_kv_heads = key.shape[1]
    if query.is_cuda and n_new == 1 and mask is None and softcap is None and query.dtype in _HALVES:
        with sdpa_kernel(_SPLITTING):
            return scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=n_heads != n_kv_heads)
    rows = query.reshape(batch, n_kv_heads, -1, head_dim)
    if mask is not None:
        group = n_heads // n_kv_heads
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
    if softcap is None:
        output = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    else:
        score = torch.tanh(rows @ key.transpose(-1, -2) * (scaling / softcap)) * softcap
        if mask is not None:
            score = score.masked_fill(~mask, float("-inf"))
        output = score.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return output.reshape(batch, n_heads, n_new, head_dim)


def no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Masks are the layer's own business: it knows the position of every token that it holds.

    Raises ValueError for padding: a padded row would keep and evict other tokens than the same row alone.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("attention_mask: padding is not supported; valid: batches of equal-length prompts")


AttentionInterface.register(NAME, slot_attention)
AttentionMaskInterface.register(NAME, no_mask)
