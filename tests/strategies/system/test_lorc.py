"""Factors are the best there are, and correct what quantisation gets wrong; plainly or where activations are large."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from strategies.system.factors import Factors
from strategies.system.lorc import CorrectedLinear, LowRankCorrection, correction
from strategies.system.weight_only import dequantised
from tests.strategies.models import prompt
from tests.strategies.system.weights import IDS, held, plain

SHAPES = [(12, 30), (30, 12), (20, 20)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@each_shape
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_factors_lose_the_singular_values_that_they_leave_out(shape: tuple[int, int], rank: int) -> None:
    matrix = random(*shape)
    up, down = Factors.of(matrix).first(rank)
    left_out = torch.linalg.svdvals(matrix)[rank:].square().sum()
    torch.testing.assert_close((matrix - up @ down).square().sum(), left_out, rtol=1e-9, atol=1e-18)
    torch.testing.assert_close(up.T @ up, torch.eye(rank, dtype=torch.double))


@each_shape
def test_the_rank_of_an_energy_is_the_first_that_holds_it(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    held_energy = torch.linalg.svdvals(matrix).square().cumsum(0) / matrix.square().sum()
    for energy in (0.1, 0.5, 0.9, 0.99):
        rank = Factors.of(matrix).rank_of(energy)
        assert held_energy[rank - 1] >= energy and (rank == 1 or held_energy[rank - 2] < energy)


def test_a_matrix_of_low_rank_and_one_of_zeros_have_factors_too() -> None:
    matrix = random(30, 3) @ random(3, 12, seed=1)
    up, down = Factors.of(matrix).first(12)
    torch.testing.assert_close(up @ down, matrix)
    up, down = correction(torch.zeros(30, 12), 4, torch.zeros(12))
    assert not (up @ down).any()


@each_shape
def test_a_scaled_correction_is_the_best_for_what_goes_through(shape: tuple[int, int]) -> None:
    error, magnitude = random(*shape), random(shape[1], seed=1).abs() + 0.1
    lost = {}
    for name, weight in (("plain", None), ("scaled", magnitude)):
        up, down = correction(error, 4, weight)
        lost[name] = ((error - up @ down) * magnitude).square().sum()
    assert lost["scaled"] < lost["plain"]
    torch.testing.assert_close(lost["scaled"], torch.linalg.svdvals(error * magnitude)[4:].square().sum())


def test_every_rank_is_closer_and_the_last_is_exact() -> None:
    weight = random(24, 32)
    off = []
    for rank in range(1, 25):
        linear = CorrectedLinear(weight, None, rank, None)
        off.append((weight - dequantised(linear.weight, linear.scale) - linear.up @ linear.down).norm().item())
    linear = CorrectedLinear(weight, None, 1, None)
    uncorrected = (weight - dequantised(linear.weight, linear.scale)).norm().item()
    assert all(after < before for before, after in zip([uncorrected, *off], off, strict=False))
    assert off[-1] < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_comes_closer_with_rank(family: str) -> None:
    ids = prompt(2, 20)
    expected = plain(family, torch.double)(ids).logits
    models = [held(family, LowRankCorrection(rank), torch.double) for rank in (1, 8, 16)]
    off = [(model(ids).logits - expected).norm().item() for model in models]
    assert off[0] > off[1] > off[2]


def test_scaled_looks_at_what_goes_into_each_layer() -> None:
    name, model = "model.layers.1.mlp.down_proj", plain("llama")
    seen: list[Tensor] = []
    with torch.no_grad():
        handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(IDS)
        handle.remove()
    weight = cast(Tensor, model.get_submodule(name).weight).detach()
    expected = CorrectedLinear(weight, None, 4, seen[0].abs().mean((0, 1)))
    got = held("llama", LowRankCorrection(4, scaled=True)).get_submodule(name)
    torch.testing.assert_close(got.up @ got.down, expected.up @ expected.down)  # type: ignore[operator]


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_a_matrix_lacks_is_refused_before_anything_changes(rank: int) -> None:
    model = plain("llama")
    with pytest.raises(ValueError, match=rf"rank={rank}: model\.layers\.0.* is a matrix of .*valid: 1 to"):
        LowRankCorrection(rank)(model, None)
    assert all(not isinstance(module, CorrectedLinear) for module in model.modules())


def test_scaling_without_text_is_refused() -> None:
    for ids in (None, IDS[:0]):
        with pytest.raises(ValueError, match="scaled=True: no text to see activations of; valid: calibration tokens"):
            LowRankCorrection(4, scaled=True)(plain("llama"), ids)
