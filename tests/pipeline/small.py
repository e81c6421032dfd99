"""A small random model and the techniques of `conf/` on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pipeline.decoding import Decoder
from pipeline.refusals import CONF
from pipeline.tasks import VOCAB_SIZE


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["profile=smoke", "tracking=disabled", *overrides])


@cache
def model(dtype: torch.dtype = torch.float64, *, n_layers: int = 2, head_dim: int = 8) -> PreTrainedModel:
    """Llama with grouped heads; a wide initialisation, so that a wrong token of context changes the logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        initializer_range=0.3,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def arm(strategy: str, kv_budget: int | None = None, of: PreTrainedModel | None = None) -> Callable[[int], Decoder]:
    """What `quality` and `timing` call an arm: given the headroom, a decoder that starts afresh."""
    build: Callable[..., Any] = instantiate(composed(f"strategy={strategy}").strategy.cache)
    of = model() if of is None else of

    def new_decoder(headroom: int) -> Decoder:
        return Decoder(of, build(model=of, kv_budget=kv_budget, headroom=headroom))

    return new_decoder


def fresh(strategy: str, headroom: int, kv_budget: int | None = None) -> Callable[[], Decoder]:
    return partial(arm(strategy, kv_budget), headroom)


def tokens(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (batch, n), generator=torch.Generator().manual_seed(seed))
