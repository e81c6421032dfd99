"""Offloading changes where tokens lie and nothing else."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from strategies.tensors import held_tensors, is_offloaded
from strategies.token.dense import DenseStorage
from strategies.token.host import HostRoom
from strategies.token.offload import Offload, OffloadedStorage
from strategies.token.staging import Staging
from tests.strategies import techniques
from tests.strategies.models import family, prompt
from tests.strategies.techniques import BUDGET
from tests.strategies.test_laws import feed, stream

ENCODINGS = ["dense", "int8", "int4", "kivi"]


@pytest.fixture(params=["read in place", "staged"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a model on CUDA does is done here with copies in memory, without a stream beside it."""
    if request.param == "staged":
        monkeypatch.setattr(OffloadedStorage, "staged", property(lambda storage: True))
    return str(request.param)


def mapped_files() -> list[tuple[int, int]]:
    """Where this process has temporary files of caches in its memory, all of them without a name."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "/kv-" in line]
    assert all(line[-1] == "(deleted)" for line in lines)
    return [(int(start, 16), int(end, 16)) for start, end in (line[0].split("-") for line in lines)]


@pytest.mark.parametrize("technique, twin", [("offload", "full"), ("snapkv_offload", "snapkv")])
def test_the_logits_are_those_of_the_same_technique_in_memory(technique: str, twin: str, way: str) -> None:
    model, ids = family("llama"), prompt(2, 60)
    expected = stream(model, techniques.build(twin, model), ids, n_prompt=40)  # past the room that was left for it
    assert torch.equal(stream(model, techniques.build(technique, model), ids, n_prompt=40), expected)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_and_replaced_tokens_are_offloaded(encoding: str, way: str) -> None:
    model, ids = family("llama"), prompt(2, 60)
    parts = [f"strategy/encoding={encoding}"]
    technique = "snapkv" if encoding == "kivi" else "token_merging"  # which reads and writes single slots
    expected = stream(model, techniques.build(technique, model, BUDGET, 8, *parts), ids, n_prompt=30)
    cache = techniques.build(technique, model, BUDGET, 8, *parts, "strategy/placement=offload")
    assert torch.equal(stream(model, cache, ids, n_prompt=30), expected)
    storages: list[Any] = [layer.storage for layer in cache.layers]
    assert all(is_offloaded(tensor) for storage in storages for tensor in held_tensors(storage.home))


def test_moved_sinks_are_offloaded(way: str) -> None:
    model, ids = family("llama"), prompt(2, 60)
    expected = stream(model, techniques.build("attention_sink", model), ids, n_prompt=30)
    cache = techniques.build("attention_sink", model, BUDGET, 8, "strategy/placement=offload")
    assert torch.equal(stream(model, cache, ids, n_prompt=30), expected)


@pytest.mark.parametrize("encoding", ["dense", "kivi"])
def test_tokens_lie_in_files_that_go_with_the_cache(encoding: str) -> None:
    model = family("llama")
    gc.collect()  # caches of other tests, whose files would go in the midst of this one
    before = mapped_files()
    cache = techniques.build("offload", model, BUDGET, 8, f"strategy/encoding={encoding}")
    stream(model, cache, prompt(1, 40), n_prompt=30)
    files = [area for area in mapped_files() if area not in before]
    tensors = [tensor for layer in cache.layers for tensor in held_tensors(layer.storage)]
    assert all(any(start <= tensor.data_ptr() < end for start, end in files) for tensor in tensors)
    assert sum(tensor.nbytes for tensor in tensors) == cache.bytes_offloaded >= cache.bytes_logical
    names = [tensor.untyped_storage().filename for tensor in tensors]
    assert not any(Path(str(name)).exists() for name in names)
    twin = copy.deepcopy(cache)
    assert twin.bytes_offloaded == cache.bytes_offloaded and twin.bytes_held == cache.bytes_held
    assert len(mapped_files()) >= len(files)
    del cache, twin, tensors
    gc.collect()
    assert mapped_files() == before


def test_all_but_the_tokens_is_held_in_memory() -> None:
    model, ids = family("llama"), prompt(2, 40)
    offloaded, full = (techniques.build(name, model) for name in ("offload", "full"))
    for cache in (offloaded, full):
        stream(model, cache, ids, n_prompt=30)
    assert offloaded.bytes_logical == full.bytes_logical
    assert offloaded.bytes_held + offloaded.bytes_offloaded == full.bytes_held
    assert offloaded.bytes_held < full.bytes_held / 10
    assert full.bytes_offloaded == 0


def test_a_copy_and_its_original_go_different_ways(way: str) -> None:
    model, ids = family("llama"), prompt(1, 50)
    cache = techniques.build("offload", model)
    stream(model, cache, ids[:, :32], n_prompt=30)
    twin, plain = copy.deepcopy(cache), techniques.build("full", model)
    stream(model, plain, ids[:, :32], n_prompt=30)
    expected = feed(model, plain, ids[:, 32:33])
    feed(model, twin, ids[:, 40:41])
    assert torch.equal(feed(model, cache, ids[:, 32:33]), expected)
    twin.reset()
    feed(model, twin, ids[:, :20])
    assert torch.equal(feed(model, cache, ids[:, 33:34]), feed(model, plain, ids[:, 33:34]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reordered_rows_stay_offloaded(encoding: str, way: str) -> None:
    model, ids, order = family("llama"), prompt(3, 50), torch.tensor([2, 2, 0])
    caches = [
        techniques.build("full", model, BUDGET, 8, f"strategy/encoding={encoding}", f"strategy/placement={placement}")
        for placement in ("contiguous", "offload")
    ]
    for cache in caches:
        stream(model, cache, ids[:, :40], n_prompt=30)
        cache.reorder_cache(order)
    in_memory, offloaded = (feed(model, cache, ids[order, 40:41]) for cache in caches)
    assert torch.equal(in_memory, offloaded)
    assert caches[1].bytes_offloaded + caches[1].bytes_held >= caches[0].bytes_held
    assert caches[1].bytes_held < caches[0].bytes_held


def test_tokens_without_numbers_are_held_without_numbers() -> None:
    storage = Offload().storages([DenseStorage])(0)
    tokens = torch.empty(1, 2, 5, 8, device="meta")
    storage.load(tokens, tokens, capacity=8)
    storage.append(5, tokens[:, :, :1], tokens[:, :, :1])
    assert all(tensor.is_meta for tensor in storage.tokens(6))


def test_two_layers_lie_on_the_device_whatever_their_number() -> None:
    staging = Staging()
    homes: list[Any] = [DenseStorage(HostRoom()) for _ in range(5)]
    for layer_idx, home in enumerate(homes):
        home.load(torch.full((1, 2, 5, 8), float(layer_idx)), torch.zeros(1, 2, 5, 8), capacity=8)
        staging.join(layer_idx, home)
    for layer_idx in [*range(5), *range(5)]:
        near = staging.near(layer_idx, torch.device("cpu"))
        assert near.tokens(5)[0].unique().tolist() == [layer_idx]
        assert sorted(held for held in staging.within if held is not None) == sorted({layer_idx, (layer_idx + 1) % 5})
    assert sum(buffer.nbytes for buffer in staging.buffers) == 2 * 2 * homes[0].keys.nbytes
