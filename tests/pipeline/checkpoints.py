"""Folders as other people have them: small random models of several families, with tokenizers of both common kinds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from pipeline import corpus
from pipeline.models import quiet

VOCAB = 4000
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MIXED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gpt2": {},
    "mistral": {"sliding_window": 24},
    "phi3": {},
    "gemma2": {**MIXED, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**MIXED, "query_pre_attn_scalar": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
BYTE_LEVEL = ("gpt2", "qwen3", "qwen3_moe")


def model(family: str) -> PreTrainedModel:
    """Random weights in float32."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512} if family == "gpt2" else SHAPE
    return AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](**{**shape, **FAMILIES[family], "vocab_size": VOCAB})
    )


def save(family: str, folder: Path, **how: Any) -> Path:
    """`save_pretrained` of the model, with a tokenizer of the family's kind."""
    with quiet():
        model(family).save_pretrained(folder, **how)
    tokenizer = byte_level() if family in BYTE_LEVEL else metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@cache
def byte_level() -> Tokenizer:
    """As GPT-2: `Ġ` marks a space, nothing is put in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False))


@cache
def metaspace() -> Tokenizer:
    """As Llama: `▁` marks a space and the start of a text, and a BOS token comes first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>"]
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    documents = [document for document, _ in zip(corpus.texts(held_out=True), range(40), strict=False)]
    # Source code knows few English sentences; a published tokenizer has a token for each of these words.
    english = " The code now means this ... Most votes are for that ... One vote for it." * 200
    tokenizer.train_from_iterator([*documents, english], trainer)
    return tokenizer
