"""Small random models of every kind of block that norms can be folded in, in float32, and one that they cannot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 97
_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, attention_bias=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2, bos_token_id=None, eos_token_id=None)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SHAPE)),
}


def build(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """With norms and biases as training leaves them: neither one nor zero."""
    torch.manual_seed(0)
    return _trained(KINDS[kind]()).to(dtype).eval()


def without_known_norms() -> PreTrainedModel:
    """One norm for attention and MLP, side by side."""
    return CohereForCausalLM(
        CohereConfig(**{name: value for name, value in _SHAPE.items() if name != "head_dim"})
    ).eval()


def prompt(batch: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, n_tokens), generator=generator)


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@torch.no_grad()
def _trained(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
