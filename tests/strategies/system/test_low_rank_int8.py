"""Low-rank factors of the weights in 8 bits, and the matrix itself where that is smaller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.memory.costs import weight_bytes
from strategies.system.low_rank_int8 import LowRankInt8, LowRankLinear
from strategies.system.weight_only import Int8Linear
from tests.strategies.models import prompt
from tests.strategies.system.weights import held, plain


def of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_a_layer_whose_factors_would_take_more_holds_its_matrix() -> None:
    model = held("llama", LowRankInt8(rank=12))
    assert {name.rpartition(".")[2] for name in of(model, Int8Linear)} == {"k_proj", "v_proj"}  # 16×32: up to rank 10
    for name in of(model, LowRankLinear):
        layer = model.get_submodule(name)
        assert isinstance(layer, LowRankLinear)
        assert layer.up.numel() + layer.down.numel() < layer.up.shape[0] * layer.down.shape[1]


def test_all_energy_is_plain_int8_and_less_is_smaller() -> None:
    models = [held("gpt2", LowRankInt8(energy=energy)) for energy in (1.0, 0.8, 0.4)]
    assert not of(models[0], LowRankLinear)
    n_bytes = [weight_bytes(model) for model in models]
    assert n_bytes[0] > n_bytes[1] > n_bytes[2]


def test_without_numbers_an_energy_is_foretold_as_the_most_it_can_take() -> None:
    foretold = plain("gpt2").to("meta")
    foretold.tie_weights()
    LowRankInt8(energy=0.8)(foretold, None)
    assert weight_bytes(foretold) == weight_bytes(held("gpt2", LowRankInt8(energy=1.0)))


@torch.inference_mode()
def test_a_matrix_of_that_rank_loses_only_to_rounding() -> None:
    model = plain("llama")
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, nn.Linear)
    left, right = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((64, 5), (5, 32)))
    layer.weight.copy_(left @ right)
    x = torch.randn(9, 32)
    expected = layer(x)
    LowRankInt8(rank=5)(model, None)
    got = model.get_submodule("model.layers.0.mlp.up_proj")(x)
    assert 0 < (got - expected).norm() < 0.02 * expected.norm()


def off(transform: LowRankInt8) -> float:
    ids: Tensor = prompt(2, 20)
    with torch.inference_mode():
        return float((held("gpt2", transform)(ids).logits - plain("gpt2")(ids).logits).norm())


def test_lower_ranks_are_further_off() -> None:
    errors = [off(transform) for transform in (LowRankInt8(energy=1.0), LowRankInt8(rank=14), LowRankInt8(rank=4))]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "rank=None energy=None: .*valid: the other null"),
        ({"rank": 4, "energy": 0.5}, r"rank=4 energy=0\.5: .*valid: the other null"),
        ({"rank": 0}, "rank=0: holds nothing; valid: at least 1"),
        ({"energy": 0.0}, r"energy=0\.0: .*valid: more than 0, at most 1"),
        ({"energy": 1.5}, r"energy=1\.5: .*valid: more than 0, at most 1"),
    ],
)
def test_what_is_no_rank_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LowRankInt8(**options)


def test_a_rank_above_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank=17: model\.layers\.0\.self_attn\.k_proj .*valid: 1 to 16"):
        LowRankInt8(rank=17)(plain("llama"), None)
