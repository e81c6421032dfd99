"""Multi-head latent attention in absorbed form (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values are products of a latent that all heads share, k = W_UK c and v = W_UV c. A step need not form them:
q·k = (W_UKᵀ q)·c and Σ p v = W_UV Σ p c, exact up to rounding. The paper folds W_UV into the output projection as well;
here it is applied to the one mixed latent of each head, which costs a step the same.

Shapes: B batch, H heads, T new tokens, N held tokens, C kv_lora_rank, R qk_rope_head_dim, D a query's dimensions,
V v_head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from strategies.attention import no_mask, visible

NAME = "latent_attention"  # permanent, as that of the slot cache


def latent_attentions(model: PreTrainedModel) -> list[Any]:
    """Its modules that expand a latent, but for those with an indexer, which hold more than that."""
    return [module for module in model.modules() if hasattr(module, "expand_kv") and not hasattr(module, "indexer")]


@contextmanager
def absorbing(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` attend to latents as they are held; its own attention comes back in the end."""
    implementation = model.config._attn_implementation
    attentions = latent_attentions(model)
    expansions = [vars(attention).get("expand_kv") for attention in attentions]
    try:
        for attention in attentions:
            attention.expand_kv = _as_held
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(implementation)
        for attention, expansion in zip(attentions, expansions, strict=True):
            del attention.expand_kv
            if expansion is not None:  # where this happens inside another such context
                attention.expand_kv = expansion


def _as_held(latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """In the place of `expand_kv`, whose answer is handed on as key and value: nothing is expanded."""
    return rotated, latent


def latent_attention(
    module: Any,
    query: Tensor,
    rotated: Tensor,
    latent: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, T, D] on rotated keys [B, 1, N, R] and latents [B, 1, N, C] → ([B, T, H, V], None).

    Many queries share one expansion of all tokens; a few, such as the one of a decode step, are cheaper without it.
    Raises ValueError for dropout.
    """
    if dropout:
        raise ValueError(f"{type(module).__name__}: attention with dropout is not supported; valid: model.eval()")
    n_new, n_held = query.shape[2], latent.shape[2]
    position = torch.arange(n_held, device=query.device)
    mask = None if n_new == 1 else visible(position[n_held - n_new :], position, None)
    n_expanded = module.qk_nope_head_dim + module.v_head_dim
    # Multiplications per head and held token: each query's, against those of the expansion as well.
    if n_new * (2 * module.kv_lora_rank - n_expanded) < module.kv_lora_rank * n_expanded:
        output = _absorbed(module, query, rotated, latent, mask, scaling)
    else:
        key, value = type(module).expand_kv(module, latent, rotated)
        whole = n_new == n_held  # then the fused kernel needs no mask
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=None if whole else mask, is_causal=whole, scale=scaling
        )
    return output.transpose(1, 2).contiguous(), None


def _absorbed(
    module: Any, query: Tensor, rotated: Tensor, latent: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """All heads are rows of one product on the shared tokens, which are read as they are held. → [B, H, T, V]"""
    batch, n_heads, n_new, _ = query.shape
    weight = module.kv_b_proj.weight.view(n_heads, -1, module.kv_lora_rank)
    up_key, up_value = weight.tensor_split([module.qk_nope_head_dim], dim=1)
    plain, turned = (query * scaling).tensor_split([module.qk_nope_head_dim], dim=-1)
    onto_latent = torch.einsum("bhtd,hdc->bhtc", plain, up_key).flatten(1, 2)
    score = torch.baddbmm(
        turned.flatten(1, 2) @ rotated[:, 0].transpose(1, 2), onto_latent, latent[:, 0].transpose(1, 2)
    )
    if mask is not None:
        score = score.view(batch, n_heads, n_new, -1).masked_fill(~mask, float("-inf")).flatten(1, 2)
    share = score.softmax(-1, dtype=torch.promote_types(score.dtype, torch.float32)).to(latent.dtype)
    mixed = (share @ latent[:, 0]).view(batch, n_heads, n_new, -1)
    return torch.einsum("bhtc,hvc->bhtv", mixed, up_value)


AttentionInterface.register(NAME, latent_attention)
AttentionMaskInterface.register(NAME, no_mask)
