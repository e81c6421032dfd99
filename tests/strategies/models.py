"""Small random models of every architecture family that the laws are checked on, in float64."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from strategies.calibration import calibrate

VOCAB = 97
WINDOW = 16  # Mistral's own

# A wide initialisation spreads the logits, so that one wrong token of context changes the argmax.
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}

_FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2, bos_token_id=None, eos_token_id=None)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=WINDOW)),
}
FAMILIES = sorted(_FAMILIES)


@cache
def family(name: str) -> PreTrainedModel:
    """Calibrated too, for the techniques that ask for it."""
    torch.manual_seed(0)
    model = _FAMILIES[name]().double().eval()
    calibrate(model, prompt(4, 64, seed=1))
    return model


def prompt(batch: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, n_tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, n_tokens), generator=generator)
