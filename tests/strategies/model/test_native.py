"""Laws of every embedded architecture under the cache that its own decoding holds."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from pipeline.decoding import Decoder
from pipeline.refusals import CONF
from pipeline.shapes import random_model
from strategies.model.native import build_cache

NAMES = ("mha", "gqa", "mqa", "mla", "sliding", "local_global", "longformer", "bigbird", "strided", "dilated", "lsh",
         "hybrid_ssm")  # fmt: skip
WITHOUT_ATTENTION = ("mamba", "mamba2", "rwkv")  # test_states.py has their other laws
WINDOW, HEADROOM, FLOAT64 = 64, 32, 8


def model_of(name: str) -> PreTrainedModel:
    """A wide initialisation spreads the logits, so that context that was lost changes what is said."""
    config = instantiate(OmegaConf.load(CONF / f"model/{name}.yaml").config, _convert_="all")
    config.initializer_range = 0.2
    return random_model(config, torch.float64, "cpu", seed=0).eval()


def prompt(n: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(1282, (batch, n), generator=torch.Generator().manual_seed(n))


def greedy(decoder: Decoder, ids: torch.Tensor, n: int) -> torch.Tensor:
    said = []
    with decoder:
        for _ in range(n):
            ids = decoder.feed(ids).argmax(-1, keepdim=True)
            said.append(ids)
    return torch.cat(said, dim=1)


def held(name: str, n_tokens: int) -> int:
    with Decoder(model := model_of(name), build_cache(model, kv_budget=None, headroom=HEADROOM)) as decoder:
        decoder.feed(prompt(n_tokens))
        return decoder.kv_bytes_logical


@pytest.mark.parametrize("name", NAMES)
def test_cached_greedy_decoding_is_uncached(name):
    """Beyond several windows, in float64: given what was said, each word is the first choice without a cache, too."""
    model, ids = model_of(name), prompt(WINDOW * 3 + 7)
    said = greedy(Decoder(model, build_cache(model, kv_budget=None, headroom=64)), ids, 64)
    assert len(said.unique()) > 16
    uncached = Decoder(model, None).feed(torch.cat([ids, said], dim=1), all_logits=True)
    assert torch.equal(said, uncached[:, ids.shape[1] - 1 : -1].argmax(-1))


@pytest.mark.parametrize("name", NAMES)
def test_four_rows_are_four_batches_of_one(name):
    model, ids = model_of(name), prompt(100, batch=4)
    together = greedy(Decoder(model, build_cache(model, kv_budget=None, headroom=HEADROOM)), ids, 8)
    alone = [greedy(Decoder(model, build_cache(model, kv_budget=None, headroom=HEADROOM)), row, 8)
             for row in ids.split(1)]  # fmt: skip
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", (*NAMES, *WITHOUT_ATTENTION))
def test_parameters_are_those_of_mha_within_5_percent(name):
    def count(one: str) -> int:
        return sum(parameter.numel() for parameter in model_of(one).parameters())

    assert count(name) == pytest.approx(count("mha"), rel=0.05)


@pytest.mark.parametrize(("name", "elements"), [("mha", 256), ("gqa", 128), ("mqa", 64), ("mla", 48 + 16)])
@pytest.mark.parametrize("n_tokens", [40, 200])
def test_bytes_grow_with_the_tokens_as_the_formula_says(name, elements, n_tokens):
    """Of a token in each of the 4 layers: keys and values of every KV head, or latent and rope key."""
    assert held(name, n_tokens) == n_tokens * 4 * elements * FLOAT64


def test_windows_hold_their_tokens_and_no_more():
    per_layer = 256 * FLOAT64
    assert held("sliding", 40) == 40 * 4 * per_layer
    assert held("sliding", 500) == WINDOW * 4 * per_layer
    assert held("local_global", 500) == (3 * WINDOW + 500) * held("local_global", 1) // 4


@pytest.mark.parametrize("name", ["longformer", "bigbird", "dilated"])
def test_what_no_later_query_sees_is_not_held(name):
    assert held(name, 900) < held("mha", 900)


def test_a_budget_is_refused():
    with pytest.raises(ValueError, match=r"kv_budget=8: an architecture keeps what it keeps; valid: null"):
        build_cache(model_of("mha"), kv_budget=8)
