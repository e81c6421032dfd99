"""Every kernel gives the sums that integers have, whatever the codes: held against float64."""

from __future__ import annotations

import pytest
import torch

from strategies.system import integers
from strategies.system.integers import product, quantise, scale_of


def row_by_row(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.stack([integers._one_row(integers._by_place(row), weight.view(torch.int32)) for row in codes])


KERNELS = {"padded": integers._padded, "by_sign": integers._by_sign, "row_by_row": row_by_row, "chosen": product}
if not torch.backends.mkldnn.is_available():
    del KERNELS["by_sign"]


def codes(n_rows: int, n_in: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (n_rows, n_in), dtype=torch.int8, generator=generator)


def exact(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows.double() @ weight.double().T


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("n_rows", "n_in", "n_out"), [(1, 64, 24), (3, 1040, 40), (40, 512, 64)])
def test_sums_are_those_of_integers(kernel, n_rows, n_in, n_out):
    rows, weight = codes(n_rows, n_in), codes(n_out, n_in, seed=1)
    assert torch.equal(kernel(rows, weight).double(), exact(rows, weight))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_nothing_saturates_where_all_codes_are_extreme(kernel, signs):
    rows, weight = (torch.full((n, 1040), 127 * sign, dtype=torch.int8) for n, sign in zip((20, 8), signs, strict=True))
    assert torch.equal(kernel(rows, weight).double(), exact(rows, weight))


@pytest.mark.parametrize("n_rows", [1, 5, 17])
def test_widths_that_no_kernel_likes(n_rows):
    rows, weight = codes(n_rows, 37), codes(11, 37, seed=1)
    assert torch.equal(product(rows, weight).double(), exact(rows, weight))
    assert torch.equal(integers._padded(rows, weight).double(), exact(rows, weight))


@pytest.mark.parametrize("n_out", [160, 200])
def test_one_row_with_a_large_weight_is_compiled_and_exact(n_out):
    row, weight = codes(1, 1024), codes(n_out, 1024, seed=1)
    assert torch.equal(product(row, weight).double(), exact(row, weight))


def test_codes_are_the_nearest_and_symmetric():
    values = torch.tensor([-3.0, -1.51, 0.0, 1.49, 3.0, 9.0])
    assert quantise(values, torch.tensor(1.0)).tolist() == [-3, -2, 0, 1, 3, 9]
    assert quantise(values, scale_of(torch.tensor(3.0))).tolist() == [-127, -64, 0, 63, 127, 127]


def test_nothing_but_zeros_is_nothing():
    assert quantise(torch.zeros(4), scale_of(torch.zeros(()))).tolist() == [0, 0, 0, 0]
