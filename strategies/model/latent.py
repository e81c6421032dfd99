"""The cache of multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434).

A token is held as one latent and one rotated key, which all heads share; `strategies.model.absorbed` attends to them.

Shapes: B batch, T new tokens, N held tokens, C kv_lora_rank, R qk_rope_head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from strategies.model.absorbed import absorbing, latent_attentions
from strategies.tensors import tensor_bytes


def is_latent(model: PreTrainedModel) -> bool:
    """Whether every layer is latent attention and holds all tokens: no window, no state, no indexer of its own."""
    layers = DynamicCache(config=model.config).layers
    return len(latent_attentions(model)) == len(layers) and all(type(layer) is DynamicLayer for layer in layers)


class LatentCache(Cache):
    """Latent and rotated key of every token. `headroom`: tokens that may come before storage is allocated anew.

    Without `attached` the model reads it rightly too, but expands every token in every step, as it always does.
    Raises ValueError for a model whose layers are not all latent attention, and for quantised weights.
    """

    layers: list[Any]

    def __init__(self, model: PreTrainedModel, headroom: int = 256) -> None:
        if not is_latent(model):
            raise ValueError(f"model={type(model).__name__}: not all its layers hold latents and nothing else; "
                             "valid: multi-head latent attention, such as that of DeepSeek-V3")  # fmt: skip
        if not all(_is_plain(attention.kv_b_proj) for attention in latent_attentions(model)):
            raise ValueError(f"model={type(model).__name__}: quantised weights cannot be absorbed; valid: weights=none")
        if headroom < 1:
            raise ValueError(f"headroom={headroom}: no room for the token that follows a prompt; valid: 1 or more")
        super().__init__(layers=[LatentLayer(headroom) for _ in latent_attentions(model)])

    @contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[LatentCache]:
        """Let `model` attend to latents without expanding them; see `strategies.model.absorbed.absorbing`."""
        with absorbing(model):
            yield self

    @property
    def attention_kwargs(self) -> dict[str, Any]:
        return {}

    @property
    def bytes_logical(self) -> int:
        """Bytes of the tokens that are kept, all layers and batch rows: C + R numbers for each token and layer."""
        return sum(tensor.nbytes for layer in self.layers if layer.is_initialized for tensor in layer.held())

    @property
    def bytes_held(self) -> int:
        """Bytes that are allocated for it, all layers and batch rows: the tokens and the room for more."""
        return tensor_bytes(*self.layers)


class LatentLayer(CacheLayerMixin):
    """One layer's tokens in the order they came: `keys` [B, 1, capacity, C] are latents, `values` [.., R] rotated keys.

    So does Transformers hand them over, and so it names the two halves of any layer.
    """

    is_sliding = False
    supports_early_init = False  # shapes come with the first tokens

    def __init__(self, headroom: int) -> None:
        super().__init__()
        self.headroom = headroom
        self.n_held = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """New latents [B, 1, T, C] and rotated keys [B, 1, T, R] → all that are held, [B, 1, N, C] and [B, 1, N, R]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, self.n_held = self.n_held, self.n_held + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        if self.n_held > self.keys.shape[2]:
            capacity = self.n_held + self.headroom
            self.keys, self.values = (_with_room(held[:, :, :first], capacity) for held in (self.keys, self.values))
        self.keys[:, :, first : self.n_held] = key_states
        self.values[:, :, first : self.n_held] = value_states
        return self.held()

    def held(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.n_held], self.values[:, :, : self.n_held]

    def get_seq_length(self) -> int:
        return self.n_held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.n_held + query_length, 0

    def get_max_length(self) -> int:
        return -1  # any number of tokens may be held

    def reset(self) -> None:
        self.keys = self.values = None
        self.n_held, self.is_initialized = 0, False

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(f"crop({tokens_to_remove}): this cache only grows; valid: a copy made before, or a new cache")


def _is_plain(linear: nn.Module) -> bool:
    return isinstance(linear, nn.Linear) and linear.weight.is_floating_point()


def _with_room(held: Tensor, capacity: int) -> Tensor:
    """[B, 1, n, ..] copied to the front of a new [B, 1, capacity, ..]."""
    roomy = held.new_empty((*held.shape[:2], capacity, held.shape[3]))
    roomy[:, :, : held.shape[2]] = held
    return roomy
