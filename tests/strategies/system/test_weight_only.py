"""Weight-only products: those of the numbers that codes stand for, by whatever path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from strategies.system.weight_only import Int8Linear, dequantised, quantised

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("n_rows", [1, 3, 40])
@pytest.mark.parametrize(("n_out", "n_in"), [(5, 4), (7, 33), (24, 64), (600, 1024)])  # the last in pieces
def test_a_product_is_that_of_what_codes_stand_for(n_out: int, n_in: int, n_rows: int, dtype: torch.dtype) -> None:
    bias = nn.Parameter(random(n_out, seed=1).to(dtype))
    linear = Int8Linear(random(n_out, n_in).to(dtype), bias)
    x = random(1, n_rows, n_in, seed=2).to(dtype)
    expected = x.double() @ dequantised(linear.weight, linear.scale).double().T + bias.double()
    got = linear(x)
    assert got.dtype == dtype and got.shape == (1, n_rows, n_out)
    assert (got.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_no_weight_is_further_off_than_half_a_step(dtype: torch.dtype) -> None:
    weight = random(40, 70).to(dtype)
    codes, scale = quantised(weight, dtype)
    off = (weight.double() - dequantised(codes, scale).double()).abs()
    step = weight.abs().amax(1, keepdim=True).double() / 127
    inexact = 0 if dtype in (torch.float32, torch.float64) else 127 * torch.finfo(dtype).eps  # of the largest code
    assert (off <= step * (0.501 + inexact)).all()


def test_zeros_stay_zeros_and_a_transposed_matrix_is_laid_out_anew() -> None:
    codes, scale = quantised(torch.zeros(6, 4).T, torch.float32)
    assert not codes.any() and scale.eq(1).all() and codes.is_contiguous()
