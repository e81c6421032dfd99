"""bitsandbytes: what its modules are given is what they were made for, and GPT-2 takes the bytes that are known."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.memory import weights
from pipeline.memory.costs import weight_bytes
from strategies.system.bnb import Bnb8bit, BnbNf4
from strategies.system.linears import matrix
from strategies.system.transform import Transform
from tests.strategies.models import prompt
from tests.strategies.system.weights import held, plain


def gpt2(transform: Transform | None) -> GPT2LMHeadModel:
    """The published shape in bfloat16, without numbers."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config()).bfloat16()
    if transform:
        transform(model, None)
    return model


@pytest.mark.parametrize(
    ("transform", "footprint", "n_bytes"),
    [(None, 248.9, 248.88), (Bnb8bit(), 163.9, 164.28), (BnbNf4(), 121.5, 122.83)],
)
def test_gpt2_takes_the_bytes_that_are_known(transform: Transform | None, footprint: float, n_bytes: float) -> None:
    """Transformers counts no scales, which are a part of what is held."""
    model = gpt2(transform)
    assert round(model.get_memory_footprint() / 1e6, 1) == footprint
    assert round(weight_bytes(model) / 1e6, 2) == n_bytes


def test_tables_are_counted_once_and_biases_stay() -> None:
    parts = weights.held(gpt2(Bnb8bit()))
    assert parts[weights.TABLES] == 2 * 768 * (50257 + 1024)
    assert parts[weights.QUANTISED] == 12 * (12 * 768 * 768 + 4 * 9 * 768)  # codes, and scales in single precision
    assert parts[weights.PLAIN] == 2 * 768 * (12 * (9 + 4) + 2)


def test_double_quantisation_takes_less() -> None:
    assert weight_bytes(gpt2(BnbNf4())) < weight_bytes(gpt2(BnbNf4(double_quant=False)))


def error(transform: Transform, family: str) -> Tensor:
    """Of the first layer's product, relative."""
    layer = {"gpt2": "transformer.h.0.mlp.c_fc", "llama": "model.layers.0.mlp.up_proj"}[family]
    before, after = (model.get_submodule(layer) for model in (plain(family), held(family, transform)))
    x = torch.randn(8, matrix(before).shape[1], generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return (after(x) - before(x)).norm() / before(x).norm()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_eight_bits_are_closer_than_four_and_both_are_close(family: str) -> None:
    assert 0 < error(Bnb8bit(), family) < 0.02
    assert 0.02 < error(BnbNf4(), family) < 0.15


def test_what_stands_out_goes_through_in_sixteen_bits() -> None:
    x = torch.ones(4, 32)
    x[:, 3] = 1000.0  # makes all else of its token one code or none
    plain_layer = plain("llama").get_submodule("model.layers.0.mlp.up_proj")
    layers = [held("llama", Bnb8bit(threshold)).get_submodule("model.layers.0.mlp.up_proj") for threshold in (0, 6.0)]
    coarse, fine = ((layer(x) - plain_layer(x)).norm() for layer in layers)
    assert fine < coarse


def test_says_nothing_at_every_call(caplog: pytest.LogCaptureFixture) -> None:
    model = held("llama", Bnb8bit())
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        model(prompt(1, 4))
    assert not caplog.records


@pytest.mark.parametrize("transform", [Bnb8bit(), BnbNf4()])
def test_a_missing_package_is_named(transform: Transform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="bitsandbytes is not installed: pip install bitsandbytes"):
        transform(plain("llama"), None)


def test_four_bits_of_double_precision_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype=float64: .*valid: float32, bfloat16, float16"):
        BnbNf4()(plain("llama", torch.float64), None)
