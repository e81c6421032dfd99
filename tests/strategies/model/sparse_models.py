"""Small random models of every sparse pattern, in float64, and the patterns once more, straight from the papers."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from strategies.model.sparse import SparseLlamaConfig, SparseLlamaForCausalLM

VOCAB = 97
N_LAYERS = 3
PATTERNS = {
    "longformer": {"window": 8, "n_global": 3},
    "bigbird": {"block": 4, "n_window": 2, "n_global": 1, "n_random": 2},
    "strided": {"stride": 8},
    "dilated": {"window": 5, "dilations": [1, 2, 4]},
    "lsh": {"window": 8, "n_hashes": 2, "n_buckets": 8},
}
KINDS = list(PATTERNS)
STATIC = [kind for kind in KINDS if kind != "lsh"]


def config(kind: str) -> SparseLlamaConfig:
    """A wide initialisation spreads the logits, so that one wrong token of context changes the argmax."""
    return SparseLlamaConfig(
        pattern={"kind": kind, **PATTERNS[kind]}, vocab_size=VOCAB, hidden_size=32, intermediate_size=64,
        num_hidden_layers=N_LAYERS, num_attention_heads=4, num_key_value_heads=4 if kind == "lsh" else 2, head_dim=8,
        initializer_range=0.3, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


@cache
def model(kind: str) -> SparseLlamaForCausalLM:
    torch.manual_seed(0)
    return SparseLlamaForCausalLM(config(kind)).double().eval()


def sees(kind: str, layer: int, query: int, key: int) -> bool:
    """The definition of the paper, with everything to the right of the query left out."""
    fields = PATTERNS[kind]
    if key > query:
        return False
    if kind == "longformer":
        return key > query - fields["window"] or key < fields["n_global"]
    if kind == "dilated":
        dilation = fields["dilations"][layer]
        return key in [query - i * dilation for i in range(fields["window"])]
    if kind == "strided":
        nearby = range(max(0, query - fields["stride"]), query + 1)  # the paper's {t, …, i}
        return key in nearby or (query - key) % fields["stride"] == 0
    own, other = query // fields["block"], key // fields["block"]
    window = range(own - fields["n_window"] + 1, own + 1)
    random = model(kind).config.pattern_of(layer).drawn(own + 1)[own]
    return other in window or other < fields["n_global"] or other in random.tolist()


@cache
def mask(kind: str, layer: int, n: int) -> Tensor:
    """[n, n] whether the query of a row sees the key of a column."""
    return torch.tensor([[sees(kind, layer, query, key) for key in range(n)] for query in range(n)])


def prompt(batch: int, n_tokens: int, seed: int = 0) -> Tensor:
    """Token ids [batch, n_tokens]."""
    return torch.randint(VOCAB, (batch, n_tokens), generator=torch.Generator().manual_seed(seed))
