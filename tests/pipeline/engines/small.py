"""Two small models with wide random weights, saved where an engine of another process can read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pipeline.engines.serving import Loaded, Request
from tests.pipeline.small import arm

VOCAB_SIZE = 300


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 256, "vocab_size": VOCAB_SIZE}
    return GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.1, bos_token_id=None, eos_token_id=None)).eval()


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def loaded(model: PreTrainedModel, folder: Path, strategy: str = "full", **changes: object) -> Loaded:
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    made = Loaded(model, folder, "float32", n_threads=1, seed=0, new_decoder=arm(strategy, of=model))
    return made if not changes else Loaded(**{**made.__dict__, **changes})  # type: ignore[arg-type]


def requests(*lengths: tuple[int, int]) -> list[Request]:
    """(prompt tokens, new tokens) each."""
    generator = torch.Generator().manual_seed(1)
    return [Request(torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist(), new) for n, new in lengths]


ALIKE = requests(*[(24, 12)] * 4)
ARRIVING = [replace(one, arrival_s=0.3 * index) for index, one in enumerate(requests((5, 9), (17, 3), (17, 4)))]
MIXED = requests((5, 9), (40, 3), (17, 14), (17, 6))
