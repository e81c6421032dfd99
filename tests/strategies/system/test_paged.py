"""Paged storage: equal to the full cache, with blocks that are shared until they are written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from strategies.cache import SlotCache
from strategies.system.blocks import OutOfBlocks
from strategies.system.paged import Paged, PagedStorage
from strategies.system.pages import DensePages, PerTokenPages
from strategies.token import packing
from tests.strategies import techniques
from tests.strategies.models import family, prompt
from tests.strategies.techniques import BUDGET
from tests.strategies.test_laws import feed, stream

P = 4  # tokens of a block
ENCODINGS = {"dense": DensePages, "int8": lambda: PerTokenPages(8), "int4": lambda: PerTokenPages(4)}


def storage(encoding: str = "dense", n_rows: int = 2, n_tokens: int = 10, capacity: int = 16) -> PagedStorage:
    paged = PagedStorage(ENCODINGS[encoding](), P)
    paged.load(*numbers(n_rows, n_tokens), capacity)
    paged.check()
    return paged


def numbers(n_rows: int, n_tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, n_rows, 2, n_tokens, 8, generator=generator, dtype=torch.double)
    return key, value


def checked(cache: SlotCache) -> list[Any]:
    storages: list[Any] = [layer.storage for layer in cache.layers]
    for each in storages:
        each.check()
    return storages


def greedy(n_new_tokens: int, **how: Any) -> dict[str, Any]:
    return {"max_new_tokens": n_new_tokens, "do_sample": False, "attention_mask": torch.ones(2, 20, dtype=int), **how}


@pytest.mark.parametrize("encoding", ["dense", "int8", "int4"])
def test_decoding_on_pages_is_decoding_on_slots(encoding: str) -> None:
    model, ids = family("llama"), prompt(2, 60)
    contiguous, paged = (
        techniques.build("full", model, BUDGET, 8, f"strategy/encoding={encoding}", f"strategy/placement={placement}")
        for placement in ("contiguous", "paged")
    )
    expected = stream(model, contiguous, ids, n_prompt=40)
    torch.testing.assert_close(stream(model, paged, ids, n_prompt=40), expected, rtol=0, atol=1e-9)
    assert paged.bytes_logical == contiguous.bytes_logical
    checked(paged)


@pytest.mark.parametrize("technique", ["snapkv", "token_merging", "attention_sink", "adakv", "minicache"])
def test_what_evicts_merges_or_shares_may_lie_in_pages(technique: str) -> None:
    model, ids = family("llama"), prompt(2, 60)
    contiguous, paged = (
        techniques.build(technique, model, BUDGET, 8, f"strategy/placement={placement}")
        for placement in ("contiguous", "paged")
    )
    expected = stream(model, contiguous, ids, n_prompt=40)
    torch.testing.assert_close(stream(model, paged, ids, n_prompt=40), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("encoding", list(ENCODINGS))
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_the_compiled_kernels_read_scattered_blocks_as_gathering_does(
    encoding: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the eager backend, which runs what would be compiled."""
    paged = storage(encoding, n_tokens=0)
    key, value = (tokens.to(dtype) for tokens in numbers(2, 50))
    paged.load(key, value, 60)
    paged.reorder(torch.tensor([1, 1]))
    paged.append(50, key[:, :, :5], value[:, :, :5])  # rows part: their last blocks lie anywhere
    query = torch.randn(2, 4, 1, 8, dtype=dtype)
    how: dict[str, Any] = {"scaling": 0.3, "softcap": None}
    gathered = paged.attend(query, 55, None, **how)
    monkeypatch.setattr(packing, "_WORTH_COMPILING", 1)
    monkeypatch.setattr(packing, "_compiled", lambda work: torch.compile(work, backend="eager"))
    monkeypatch.setattr(packing, "_has_compiler", lambda device: True)
    torch.testing.assert_close(paged.attend(query, 55, None, **how), gathered)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["dense", "int8"])
def test_one_compiled_kernel_serves_a_sequence_that_grows(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packing._has_compiler("cpu"):
        pytest.skip("no C++ compiler")
    n_tokens = 9000  # in words of 8-bit codes, above what is worth compiling
    paged = storage(encoding, n_tokens=n_tokens, capacity=n_tokens)
    paged.reserve(n_tokens + 40)
    query, how = torch.randn(2, 4, 1, 8, dtype=torch.double), {"scaling": 0.3, "softcap": None}
    compiled, gathered, graphs = [], [], set()
    for n_held in range(n_tokens, n_tokens + 40, 3):
        compiled.append(paged.attend(query, n_held, None, **how))
        graphs.add(counters["stats"]["unique_graphs"])
        with monkeypatch.context() as patch:
            patch.setattr(packing, "_WORTH_COMPILING", 1 << 40)
            gathered.append(paged.attend(query, n_held, None, **how))
        paged.append(n_held, *numbers(2, 3, seed=n_held))
    torch.testing.assert_close(torch.stack(compiled), torch.stack(gathered))
    assert len(graphs) == 1 and graphs != {0}


def test_a_pool_without_numbers_has_the_shapes() -> None:
    paged = PagedStorage(DensePages(), P)
    tokens = torch.empty(2, 2, 10, 8, device="meta")
    paged.load(tokens, tokens, 16)
    paged.append(10, tokens[:, :, :1], tokens[:, :, :1])
    assert all(pool.is_meta and pool.shape == (8, 2, P, 8) for pool in paged.pools)
    assert paged.bytes_of(11) == 2 * 2 * 2 * 11 * 8 * 4
    paged.check()


def test_no_more_is_held_than_the_headroom_and_a_block_of_each_row() -> None:
    model, batch, headroom = family("llama"), 3, 8
    cache = techniques.build("paged", model, BUDGET, headroom)
    token_bytes = 2 * batch * 2 * 8 * 8
    for n_tokens in (1, 30, *[1] * 20):
        feed(model, cache, prompt(batch, n_tokens))
        for layer, paged in zip(cache.layers, checked(cache), strict=True):
            held = sum(pool.nbytes for pool in paged.pools)
            assert 0 <= held - layer.bytes_logical <= (headroom + P - 1) * token_bytes


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_rows_that_begin_alike_share_whole_blocks_until_they_part(encoding: str) -> None:
    paged = storage(encoding, n_tokens=0)
    key, value = numbers(3, 11)
    key[1:, :, :9], value[1:, :, :9] = key[:1, :, :9], value[:1, :, :9]
    paged.load(key, value, 12)
    assert (paged.blocks.n_blocks, paged.blocks.n_used) == (5, 5)  # two for all, and one each
    apart = PagedStorage(ENCODINGS[encoding](), P)
    for row in range(3):
        apart.load(key[row : row + 1], value[row : row + 1], 12)
        for got, alone in zip(paged.tokens(11), apart.tokens(11), strict=True):
            assert torch.equal(got[row : row + 1], alone)
    paged.check()


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_a_fork_reads_the_same_blocks_and_copies_the_one_it_writes(encoding: str) -> None:
    paged = storage(encoding, n_rows=1, n_tokens=10, capacity=12)
    before = paged.tokens(10)
    paged.reorder(torch.zeros(3, dtype=torch.long))
    assert (paged.blocks.n_used, paged.blocks.n_shared) == (3, 3)
    assert paged.bytes_of(10) == paged.bytes_of(8) // 8 * 10  # those of one row
    more = numbers(3, 1, seed=1)
    paged.append(10, *more)
    assert (paged.blocks.n_used, paged.blocks.n_shared) == (5, 2)
    alone = PagedStorage(ENCODINGS[encoding](), P)
    alone.load(*more, 1)
    for after, old, new in zip(paged.tokens(11), before, alone.tokens(1), strict=True):
        assert torch.equal(after, torch.cat([old.expand(3, -1, -1, -1), new], dim=2))
    paged.check()


@pytest.mark.parametrize("encoding", ["dense", "int8"])
def test_a_slot_that_is_replaced_is_replaced_in_one_row(encoding: str) -> None:
    paged = storage(encoding)
    paged.reorder(torch.tensor([1, 1]))
    before, new = paged.tokens(10), numbers(2, 1, seed=1)
    slot = torch.tensor([[[0], [9]], [[5], [5]]])
    paged.replace(slot, *new)
    paged.check()
    assert paged.blocks.n_shared == 0
    for after, old, at in zip(paged.tokens(10), before, paged.at(slot), strict=True):
        there = slot[..., None].expand(-1, -1, -1, 8)
        assert torch.equal(after.gather(2, there), at)
        assert torch.equal(after.scatter(2, there, 0.0), old.scatter(2, there, 0.0))
    torch.testing.assert_close(torch.stack(paged.at(slot)), torch.stack(new), rtol=0, atol=0.02)


def test_a_prompt_read_once_is_shared_by_rows_that_go_on_differently() -> None:
    model, ids = family("llama"), prompt(1, 40)
    cache, others = techniques.build("paged", model), prompt(3, 13, seed=1)
    stream(model, cache, ids, n_prompt=30)
    one_row = cache.bytes_logical
    cache.reorder_cache(torch.zeros(3, dtype=torch.long))
    assert cache.bytes_logical == one_row
    steps = [feed(model, cache, piece) for piece in others.split([9, 1, 1, 1, 1], dim=1)]
    got = torch.cat(steps, dim=1)
    assert [paged.blocks.n_shared for paged in checked(cache)] == [10] * 3
    for row in range(3):
        alone = techniques.build("full", model)
        stream(model, alone, ids, n_prompt=30)
        torch.testing.assert_close(got[row : row + 1], feed(model, alone, others[row : row + 1]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("encoding", ["dense", "int8"])
def test_beams_share_blocks_and_are_those_of_a_contiguous_cache(encoding: str) -> None:
    model, ids = family("llama"), prompt(2, 20)
    how = greedy(10, num_beams=3)
    caches = [
        techniques.build("full", model, BUDGET, 8, f"strategy/encoding={encoding}", f"strategy/placement={placement}")
        for placement in ("contiguous", "paged")
    ]
    answers = []
    for cache in caches:
        with cache.attached(model):
            answers.append(model.generate(ids, past_key_values=cache, **how))
    assert torch.equal(*answers)
    if encoding == "dense":
        assert torch.equal(answers[1], model.generate(ids, **how))
    storages = checked(caches[1])
    assert all(paged.blocks.n_shared >= 2 * 20 // P for paged in storages)
    pools = sum(pool.nbytes for paged in storages for pool in paged.pools)
    assert pools < 0.7 * caches[0].bytes_logical
    assert caches[1].bytes_logical <= pools


@pytest.mark.parametrize("technique", ["paged", "paged_int8"])
def test_what_was_rejected_is_as_if_it_had_never_been(technique: str) -> None:
    model, ids = family("llama"), prompt(2, 40)
    cache, straight = (techniques.build(technique, model) for _ in range(2))
    stream(model, cache, ids[:, :30], n_prompt=22)
    feed(model, cache, prompt(2, 9, seed=1))
    n_used = [paged.blocks.n_used for paged in checked(cache)]
    cache.crop(-11)  # the draft, and two tokens before
    assert [paged.blocks.n_used for paged in checked(cache)] == [before - 2 * 3 for before in n_used]
    assert cache.get_seq_length() == 28
    stream(model, straight, ids[:, :28], n_prompt=22)
    expected = feed(model, straight, ids[:, 28:])
    torch.testing.assert_close(feed(model, cache, ids[:, 28:]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("drafts", ["looked up in the prompt", "from another model"])
def test_speculative_decoding_gives_the_plain_tokens(drafts: str) -> None:
    model, ids = family("llama"), prompt(1, 20).repeat(1, 2)
    how = greedy(16) | {"attention_mask": torch.ones_like(ids)}
    other = {"prompt_lookup_num_tokens": 4} if drafts.startswith("looked") else {"assistant_model": family("qwen3")}
    cache = techniques.build("paged", model)
    with cache.attached(model):
        got = model.generate(ids, past_key_values=cache, **other, **how)
    assert torch.equal(got, model.generate(ids, **how))
    assert all(paged.blocks.n_tokens(paged.rows[0]) == cache.get_seq_length() for paged in checked(cache))


def test_rolling_back_over_what_was_evicted_or_never_held_is_refused() -> None:
    model = family("llama")
    evicting = techniques.build("snapkv", model, BUDGET, 8, "strategy/placement=paged")
    feed(model, evicting, prompt(1, 40))
    with pytest.raises(ValueError, match=r"crop\(-1\): an evicted token"):
        evicting.crop(-1)
    cache = techniques.build("paged", model)
    feed(model, cache, prompt(1, 10))
    for wrong in (-10, 3):
        with pytest.raises(ValueError, match=rf"crop\({wrong}\): 10 tokens are held; valid: -9 to 0"):
            cache.crop(wrong)


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_a_preempted_row_comes_back_as_it_was(encoding: str) -> None:
    paged = storage(encoding)
    before, n_used = paged.tokens(10), paged.blocks.n_used
    paged.swap_out(0)
    assert paged.blocks.n_used == n_used - 3
    paged.check()
    taken = paged.blocks.n_free
    for pool in paged.pools:  # whoever is given the blocks writes them
        pool[sorted(paged.blocks._free)] = 7
    paged.swap_in(0)
    paged.check()
    assert paged.blocks.n_free == taken - 3 and not paged.saved
    for after, old in zip(paged.tokens(10), before, strict=True):
        assert torch.equal(after, old)


def test_a_preempted_row_waits_for_room() -> None:
    paged = storage(n_rows=2, n_tokens=8, capacity=8)
    paged.swap_out(0)
    paged.blocks.add(99, 5)
    with pytest.raises(OutOfBlocks):
        paged.swap_in(0)
    with pytest.raises(ValueError, match="swapped out"):
        paged.append(8, *numbers(2, 1))
    paged.blocks.free(99)
    paged.swap_in(0)
    paged.check()


def test_a_preempted_row_can_be_recomputed_instead() -> None:
    model, ids = family("llama"), prompt(1, 40)
    cache, again = (techniques.build("paged", model) for _ in range(2))
    stream(model, cache, ids[:, :30], n_prompt=22)
    expected = feed(model, copy.deepcopy(cache), ids[:, 30:])
    cache.reset()
    feed(model, again, ids[:, :30])  # what it had, prompt and answer, is now one prompt
    torch.testing.assert_close(feed(model, again, ids[:, 30:]), expected, rtol=0, atol=1e-9)


def test_a_copy_and_its_original_go_different_ways() -> None:
    model, ids = family("llama"), prompt(2, 40)
    cache = techniques.build("paged", model)
    stream(model, cache, ids[:, :30], n_prompt=22)
    twin = copy.deepcopy(cache)
    feed(model, twin, prompt(2, 20, seed=1))
    checked(twin)
    checked(cache)
    straight = techniques.build("full", model)
    expected = stream(model, straight, ids, n_prompt=22)[:, 30:]
    torch.testing.assert_close(feed(model, cache, ids[:, 30:]), expected, rtol=0, atol=1e-9)


def test_the_check_finds_a_table_that_is_out_of_date() -> None:
    paged = storage()
    paged.blocks.append(paged.rows[0], 5)
    with pytest.raises(AssertionError, match="table"):
        paged.check()


def test_a_block_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"placement\.block_size=0: .*; valid: 1 or more"):
        Paged(block_size=0)
