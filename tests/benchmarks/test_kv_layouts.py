"""Every layout attends as the definition says, appends in place, and takes no copy of what it holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.kv_layouts import RUN, Contiguous, Paged, Shape, Tokens, fused, products, random_tokens
from pipeline.memory.measured import peak_growths

PAGE = 4
BUILD: dict[str, Callable[[Shape], Contiguous | Paged]] = {
    "heads_first": partial(Contiguous, tokens_first=False),
    "tokens_first": partial(Contiguous, tokens_first=True),
    "paged": partial(Paged, page_size=PAGE),
}
WAYS = [("heads_first", fused), ("heads_first", products), ("tokens_first", fused), ("tokens_first", products)]
ARMS = [*(pytest.param(name, {"way": way}, id=f"{name}-{way.__name__}") for name, way in WAYS),
        pytest.param("paged", {}, id="paged")]  # fmt: skip


def shape(batch: int, capacity: int, dtype: torch.dtype = torch.float64) -> Shape:
    return Shape(n_layers=2, batch=batch, n_kv_heads=3, head_dim=8, capacity=capacity, dtype=dtype)


def queries(of: Shape, n_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    size = (of.n_layers, of.batch, of.n_kv_heads, n_rows, of.head_dim)
    return torch.randn(size, generator=generator, dtype=of.dtype)


def brute_force(query: torch.Tensor, seen: Tokens) -> torch.Tensor:
    """[L, B, H, R, D], one number after another."""
    answer = torch.zeros_like(query)
    for where in torch.cartesian_prod(*map(torch.arange, query.shape[:-1])).tolist():
        head, row = tuple(where[:3]), tuple(where)
        scores = torch.stack([query[row] @ key / query.shape[-1] ** 0.5 for key in seen.key[head]])
        weight = scores.exp() / scores.exp().sum()
        answer[row] = sum(w * value for w, value in zip(weight, seen.value[head], strict=True))
    return answer


@pytest.mark.parametrize(("name", "options"), ARMS)
@pytest.mark.parametrize("n_tokens", [1, PAGE, PAGE * RUN, PAGE * RUN + 3])
def test_attention_is_that_of_the_definition_after_a_prompt_and_single_tokens(name, options, n_tokens):
    of = shape(batch=2, capacity=n_tokens + 2)
    generator = torch.Generator().manual_seed(0)
    parts = [random_tokens(of, n, generator) for n in (n_tokens, 1, 1)]
    cache = BUILD[name](of)
    for part in parts:
        cache.append(part)
    seen = Tokens(*(torch.cat([getattr(part, kind) for part in parts], dim=-2) for kind in ("key", "value")))
    found = torch.stack(cache.attend(queries(of, 2), **options))
    torch.testing.assert_close(found, brute_force(queries(of, 2), seen), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BUILD)
def test_a_token_is_written_in_place_and_nothing_else_changes(name):
    of = shape(batch=2, capacity=11)
    cache = BUILD[name](of)
    generator = torch.Generator().manual_seed(0)
    cache.append(random_tokens(of, 10, generator))
    held = [tensor for layer in cache._layers for tensor in layer]
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in held]
    cache.append(random_tokens(of, 1, generator))
    for tensor, (place, old) in zip((t for layer in cache._layers for t in layer), before, strict=True):
        assert tensor.data_ptr() == place
        assert (tensor != old).sum() == of.batch * of.n_kv_heads * of.head_dim


def test_the_memory_of_each_layout_is_in_its_order():
    of = shape(batch=1, capacity=7)
    for tokens_first in (False, True):
        key, _ = Contiguous(of, tokens_first=tokens_first)._layers[0]
        assert key.shape == (1, 3, 7, 8)
        assert (key.stride(2) == 3 * 8) is tokens_first and (key.stride(1) == 8) is tokens_first


def test_pages_are_out_of_order_and_each_has_one_owner():
    table = Paged(shape(batch=3, capacity=40), PAGE).table_BN
    assert table.shape == (3, 10) and table.flatten().sort().values.tolist() == list(range(30))
    assert table.flatten().tolist() != list(range(30))


@pytest.mark.parametrize(("name", "options"), ARMS)
def test_attending_to_one_sequence_copies_no_cache(name, options):
    """What a step takes beside the cache is a small part of one layer's keys."""
    of = Shape(n_layers=1, batch=1, n_kv_heads=4, head_dim=64, capacity=4096)
    cache, query = BUILD[name](of), queries(of, 1)
    cache.append(random_tokens(of, of.capacity, torch.Generator().manual_seed(0)))
    key, _ = cache._layers[0]

    def step():
        yield cache.attend(query, **options)

    with torch.inference_mode():
        (taken,) = peak_growths(step(), "cpu")
    assert taken < key.nbytes / 8
