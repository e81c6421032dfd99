"""A Llama whose attention obeys a sparse pattern, registered with Transformers as `sparse_llama`.

`config.pattern` names a kind, and its fields: what each kind does with them is said in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from strategies.model.bigbird import BigBird
from strategies.model.blockwise import sparse_attention
from strategies.model.dilated import Dilated
from strategies.model.longformer import Longformer
from strategies.model.lsh import HashedLayer, Hashing, LSHAttention
from strategies.model.patterns import Pattern
from strategies.model.sparse_cache import PatternLayer, SparseCache
from strategies.model.strided import Strided


def _dilated(layer_idx: int, *, window: int, dilations: list[int]) -> Dilated:
    """As in the paper, the dilation widens from layer to layer."""
    return Dilated(window, dilations[layer_idx % len(dilations)])


def _lsh(layer_idx: int, *, window: int, n_hashes: int, n_buckets: int) -> Longformer | Hashing:
    """As in the paper's code, local layers and hashed ones take turns."""
    return Hashing(n_hashes, n_buckets) if layer_idx % 2 else Longformer(window, n_global=0)


KINDS: dict[str, Callable[..., Pattern | Hashing]] = {
    "longformer": lambda layer_idx, **fields: Longformer(**fields),
    "bigbird": lambda layer_idx, **fields: BigBird(layer_idx=layer_idx, **fields),
    "strided": lambda layer_idx, **fields: Strided(**fields),
    "dilated": _dilated,
    "lsh": _lsh,
}


class SparseLlamaConfig(LlamaConfig):
    """`pattern`: {kind: …, and its fields}."""

    model_type = "sparse_llama"

    pattern: dict[str, Any] | None = None

    def pattern_of(self, layer_idx: int) -> Pattern | Hashing:
        """Raises ValueError for an unknown kind, and fields that it does not have."""
        fields = dict(self.pattern or {})
        kind = fields.pop("kind", None)
        if kind not in KINDS:
            raise ValueError(f"pattern.kind={kind}: unknown; valid: {', '.join(KINDS)}")
        try:
            return KINDS[kind](layer_idx, **fields)
        except TypeError as error:
            raise ValueError(f"pattern={self.pattern}: {error}; valid: the fields of {kind}") from None


class SparseAttention(LlamaAttention):
    """Llama's projections and rotary positions; who sees whom goes by the index in the sequence."""

    def __init__(self, config: LlamaConfig, layer_idx: int, pattern: Pattern) -> None:
        super().__init__(config, layer_idx)
        self.pattern = pattern

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B, T, hidden] → the same. A cache of another kind holds all, and is seen through the mask."""
        batch, n_new, _ = hidden_states.shape
        query, key, value = (
            project(hidden_states).view(batch, n_new, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if isinstance(past_key_values, SparseCache):
            layer = past_key_values.layers[self.layer_idx]
            output = layer.attend(query, key, value, scaling=self.scaling)
        else:
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            output = sparse_attention(self.pattern, query, key, value, scaling=self.scaling)
        return self.o_proj(output.transpose(1, 2).flatten(2)), None


class SparseLlamaForCausalLM(LlamaForCausalLM):
    config_class = SparseLlamaConfig

    def __init__(self, config: SparseLlamaConfig) -> None:
        super().__init__(config)
        for layer_idx, layer in enumerate(self.model.layers):
            pattern = config.pattern_of(layer_idx)
            attention = LSHAttention if isinstance(pattern, Hashing) else SparseAttention
            layer.self_attn = attention(config, layer_idx, pattern)  # type: ignore[arg-type]
        self.post_init()

    def new_cache(self, headroom: int) -> SparseCache:
        """An empty cache for a prompt and at most `headroom` tokens after it."""
        patterns = [self.config.pattern_of(layer_idx) for layer_idx in range(self.config.num_hidden_layers)]
        return SparseCache(
            [HashedLayer(headroom) if isinstance(one, Hashing) else PatternLayer(one, headroom) for one in patterns]
        )

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Raises ValueError for padding: patterns go by the index, which padding would shift."""
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise ValueError("attention_mask: padding is not supported; valid: batches of equal-length prompts")
        if kwargs.get("past_key_values") is None:
            kwargs["use_cache"] = False  # Transformers would make a cache that holds everything
        return super().forward(*args, **kwargs)

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, Any], allow_all_kernels: bool = False
    ) -> None:
        """Raises ValueError: whatever attends instead would not obey the pattern."""
        raise ValueError(f"model={type(self).__name__}: its attention obeys a pattern and cannot be replaced; "
                         "valid: strategy=native, the cache that it has by itself")  # fmt: skip


AutoConfig.register(SparseLlamaConfig.model_type, SparseLlamaConfig)
AutoModelForCausalLM.register(SparseLlamaConfig, SparseLlamaForCausalLM)
# Registering does not add to the names by which causal language models are recognised.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[SparseLlamaConfig.model_type] = SparseLlamaForCausalLM.__name__
