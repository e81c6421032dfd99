"""The kernels for coded and paged tokens, run by Triton's interpreter on the CPU, say what plain operations say."""

from __future__ import annotations

import os

import pytest
import torch

from strategies.system.paged import PagedStorage
from strategies.system.pages import DensePages
from strategies.token.contiguous import Contiguous
from strategies.token.kivi import KiviStorage
from strategies.token.per_token import PerTokenStorage

pytest.importorskip("triton", reason="Triton, which comes with torch for CUDA, is not installed")
pytestmark = pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="test_cuda.py runs them on this GPU")
HELD = {
    "int8": lambda: PerTokenStorage(Contiguous(), bits=8),
    "int4": lambda: PerTokenStorage(Contiguous(), bits=4),
    "kivi8": lambda: KiviStorage(Contiguous(), bits=8, n_recent=64),
    "kivi4": lambda: KiviStorage(Contiguous(), bits=4, n_recent=64),
    "kivi2": lambda: KiviStorage(Contiguous(), bits=2, n_recent=0),
    "paged": lambda: PagedStorage(DensePages(), 16),
}


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storages take the kernels, as on a GPU, where it is the real one that runs them."""
    for storage in ("token.per_token", "token.kivi", "system.paged"):
        monkeypatch.setattr(f"strategies.{storage}.can_split", lambda query, mask, softcap: mask is None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n_tokens", "n_query_heads", "head_dim"), [(1, 4, 32), (700, 6, 64), (321, 2, 128)])
@pytest.mark.parametrize("name", HELD)
@torch.inference_mode()
def test_one_kernel_gives_what_two_products_and_a_softmax_give(
    name: str, n_tokens: int, n_query_heads: int, head_dim: int, dtype: torch.dtype, interpreted: None
) -> None:
    generator = torch.Generator().manual_seed(n_tokens)
    key, value = torch.randn(2, 2, 2, n_tokens, head_dim, generator=generator).to(dtype)
    query = torch.randn(2, n_query_heads, 1, head_dim, generator=generator).to(dtype)
    storage = HELD[name]()
    storage.load(key, value, n_tokens + 3)
    how = {"scaling": 0.3, "softcap": None}
    expected = storage.attend_observed(query, n_tokens, None, **how)[0].float()
    got = storage.attend(query, n_tokens, None, **how).float()
    assert (got - expected).norm() < (1e-5 if dtype == torch.float32 else 2e-3) * expected.norm()


@torch.inference_mode()
def test_rows_that_grow_are_attended_to_the_end(interpreted: None) -> None:
    """Across the border of a tile, a part and a group, one token at a time."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 1, 1, 300, 32, generator=generator)
    query = torch.randn(1, 2, 1, 32, generator=generator)
    for name in ("int4", "kivi4", "paged"):
        storage = HELD[name]()
        storage.load(key[:, :, :250], value[:, :, :250], 300)
        for n_held in range(250, 262):
            storage.append(n_held, key[:, :, n_held : n_held + 1], value[:, :, n_held : n_held + 1])
            expected, _ = storage.attend_observed(query, n_held + 1, None, scaling=0.3, softcap=None)
            got = storage.attend(query, n_held + 1, None, scaling=0.3, softcap=None)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
