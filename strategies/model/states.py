"""The caches of models without attention: a state whose size does not depend on how many tokens it has seen.

Shapes: B batch, T tokens fed now, H hidden_size, A attention_hidden_size, E expanded channels, N state_size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from strategies.model.rwkv import RwkvLayer, columns
from strategies.tensors import tensor_bytes

# Whether a scan of several tokens starts from the state that it finds.
CONTINUES = {"mamba": False, "falcon_mamba": False, "mamba2": True}


def has_no_attention(model: PreTrainedModel) -> bool:
    """Whether its class takes no keys and values from the past, but a state under a name of its own."""
    return model._is_stateful and "past_key_values" not in signature(type(model).forward).parameters


def require_attention(model: PreTrainedModel) -> None:
    """Raises ValueError, naming the model, where it would take a cache of tokens and never look at it."""
    if has_no_attention(model):
        raise ValueError(f"model={type(model).__name__}: it has no attention, so there are no tokens to hold; "
                         "valid: strategy=native")  # fmt: skip


def build_state_cache(model: PreTrainedModel) -> StateCache:
    """An empty cache for a model without attention. Raises ValueError for a kind of state that none of ours holds."""
    if model.config.model_type in CONTINUES:
        return MambaCache(model)
    if model.config.model_type == "rwkv":
        return RwkvCache(model)
    raise ValueError(f"model={type(model).__name__}: it holds a state of a kind that is not known here; "
                     "valid: Mamba, Falcon Mamba, Mamba-2, RWKV-4, or attention")  # fmt: skip


class StateCache(Cache):
    """A state for each layer, allocated with the first tokens for as many rows as they have.

    While attached, the model takes it as any other cache, by `past_key_values`.
    """

    layers: list[Any]

    def __init__(self, model: PreTrainedModel) -> None:
        self.config, self.dtype = model.config, model.dtype
        self.n_seen = 0
        super().__init__(layers=self.new_layers())

    @abstractmethod
    def new_layers(self) -> list[Any]: ...

    @abstractmethod
    def feed(self, forward: Any, input_ids: Tensor, *, logits_to_keep: int = 0, **others: Any) -> Any:
        """Tokens [B, T] through the model's own `forward`, from the state that is held to the next one."""

    @contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[StateCache]:
        """Let `model` find the state in this cache wherever it is given; its own `forward` comes back in the end."""
        before, forward = vars(model).get("forward"), model.forward

        def fed(input_ids: Tensor, past_key_values: Any = None, **others: Any) -> Any:
            if past_key_values is not self:
                return forward(input_ids=input_ids, past_key_values=past_key_values, **others)
            n_new = input_ids.shape[1]
            if input_ids.is_meta:  # only sizes are asked for, which one token settles; a loop over all takes minutes
                input_ids = input_ids[:, -1:]
            output = self.feed(forward, input_ids, **others)
            self.n_seen += n_new
            return output

        model.forward = fed
        try:
            yield self
        finally:
            del model.forward
            if before is not None:  # where this happens inside another such context
                model.forward = before

    @property
    def attention_kwargs(self) -> dict[str, Any]:
        return {}

    @property
    def bytes_logical(self) -> int:
        """Bytes of the state, all layers and batch rows: a step reads and writes all of it."""
        return self.bytes_held

    @property
    def bytes_held(self) -> int:
        return tensor_bytes(*self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.n_seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def reset(self) -> None:
        """As new: a batch of another size may follow, for which the stock layers would keep their old rows."""
        self.layers, self.n_seen = self.new_layers(), 0

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(f"crop({tokens_to_remove}): a state cannot forget a token; valid: a new cache")


class MambaCache(StateCache):
    """Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060): the stock layers of Transformers.

    Held for each layer: the last conv_kernel inputs of the convolution [B, E, 4], in Mamba-2 those of B and C too, and
    the state [B, E, N]. Where the scan of several tokens would start from nothing, as Transformers' Mamba does whatever
    state it is given, tokens that follow others are fed one by one.
    """

    def new_layers(self) -> list[Any]:
        return DynamicCache(config=self.config).layers

    def feed(self, forward: Any, input_ids: Tensor, *, logits_to_keep: int = 0, **others: Any) -> Any:
        if self.n_seen == 0 or input_ids.shape[1] == 1 or CONTINUES[self.config.model_type]:
            return forward(input_ids=input_ids, cache_params=self, logits_to_keep=logits_to_keep, **others)
        outputs = [forward(input_ids=ids_B1, cache_params=self, **others) for ids_B1 in input_ids.split(1, dim=1)]
        outputs[-1].logits = torch.cat([output.logits for output in outputs[-logits_to_keep:]], dim=1)
        return outputs[-1]


class RwkvCache(StateCache):
    """RWKV-4 (arXiv 2305.13048).

    Held for each layer: the last inputs of its two mixings of tokens [B, H] each, and of its weighted mean of values
    the numerator, the denominator and the largest exponent, which both are divided by, [B, A] each in float32.
    """

    def new_layers(self) -> list[Any]:
        return [RwkvLayer() for _ in range(self.config.num_hidden_layers)]

    def feed(self, forward: Any, input_ids: Tensor, *, logits_to_keep: int = 0, **others: Any) -> Any:
        if self.n_seen == 0:
            for layer in self.layers:
                layer.allocate(len(input_ids), self.config, self.dtype, input_ids.device)
        state = columns(self.layers, one_token=input_ids.shape[1] == 1)
        return forward(input_ids=input_ids, state=state, logits_to_keep=logits_to_keep, **others)
