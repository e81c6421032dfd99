"""On a CUDA device every technique does what it does on a CPU, and its steps can be captured as graphs."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from pipeline.decoding import Decoder
from pipeline.graphs import Graphs
from strategies.calibration import calibrate
from strategies.system.paged import PagedStorage
from strategies.system.pages import DensePages, PerTokenPages
from strategies.token import packing
from strategies.token.contiguous import Contiguous
from strategies.token.kivi import KiviStorage
from strategies.token.per_token import PerTokenStorage
from tests.strategies import techniques, test_foreign
from tests.strategies.models import family, prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda"
N_PROMPT, N_STEPS = 200, 24
HOLDING = [*techniques.CACHED, *test_foreign.RUNNING]
OFFLOADING = {name for name in techniques.CACHED if "Offload" in str(techniques.config(name).strategy.placement)}
# GPT-2 computes in double precision throughout; Llama's norms and rotations are in single precision whatever is asked.
TOLERANCE = {"gpt2": 1e-8, "llama": 3e-4}
# There a last digit would decide which code is nearest, and which of two equal tokens has the shorter key.
ON_LLAMA = [name for name in (*techniques.EXACT, *test_foreign.RUNNING) if name != "knorm"]
ON_MODELS = [(name, "gpt2") for name in HOLDING] + [(name, "llama") for name in ON_LLAMA]


@cache
def on_device(model_name: str, dtype: torch.dtype = torch.double) -> PreTrainedModel:
    model: Any = copy.deepcopy(family(model_name)).to(dtype)
    calibrate(model.to(DEVICE), prompt(4, 64, seed=1).to(DEVICE))
    return model  # type: ignore[no-any-return]


def prefilled(technique: str, model: PreTrainedModel, headroom: int = N_STEPS) -> tuple[Decoder, Tensor]:
    """A prompt fed at once, and the tokens [B, N_STEPS] that follow it."""
    ids = prompt(2, N_PROMPT + N_STEPS).to(model.device)
    build = test_foreign.build if technique in test_foreign.RUNNING else techniques.build
    decoder = Decoder(model, build(technique, model, headroom=headroom))
    decoder.foresee(ids, N_PROMPT)
    with decoder:
        decoder.feed(ids[:, :N_PROMPT])
    return decoder, ids[:, N_PROMPT:]


def run(technique: str, model: PreTrainedModel, headroom: int) -> tuple[Tensor, Decoder]:
    """Logits [B, N_STEPS, V] of what follows a prompt, on the CPU."""
    decoder, following = prefilled(technique, model, headroom)
    with decoder:
        return decoder.teacher_force(following).cpu(), decoder


@pytest.mark.parametrize(("technique", "model_name"), ON_MODELS)
def test_logits_and_bytes_are_those_of_the_cpu(technique: str, model_name: str) -> None:
    headroom = N_STEPS if technique == "hf_static" else 8  # all others make room for more where it ends
    expected, on_cpu = run(technique, family(model_name), headroom)
    got, on_gpu = run(technique, on_device(model_name), headroom)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[model_name])
    assert on_gpu.kv_bytes_logical == on_cpu.kv_bytes_logical
    assert on_gpu.kv_bytes_offloaded == on_cpu.kv_bytes_offloaded
    if technique not in OFFLOADING:  # there is room on the device for two layers, which a CPU needs not
        assert on_gpu.kv_bytes_held == on_cpu.kv_bytes_held


@pytest.mark.parametrize("technique", HOLDING)
def test_captured_steps_give_the_logits_of_launched_ones(technique: str) -> None:
    if technique in OFFLOADING:
        pytest.skip("the host writes every token into its own memory, which no graph does")
    decoder, following = prefilled(technique, on_device("llama", torch.float32))
    with Decoder(decoder.model, copy.deepcopy(decoder.cache)) as again:
        expected = again.teacher_force(following)
    got, graphs = [], Graphs()
    with decoder:
        for ids in following.split(1, dim=1):
            got.append(replayed(graphs, partial(decoder.feed, ids)))
    torch.testing.assert_close(torch.stack(got, dim=1), expected, rtol=0, atol=1e-4)


def replayed(graphs: Graphs, step: Callable[[], Tensor]) -> Tensor:
    """What the step gives, once it was captured, and computed by the replay."""
    made: list[Tensor] = []
    graphs.captured(lambda: made.append(step()))()
    return made[0].clone()


@pytest.mark.parametrize("technique", HOLDING)
def test_in_half_precision_all_numbers_are_finite(technique: str) -> None:
    logits, _ = run(technique, on_device("llama", torch.bfloat16), N_STEPS)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("technique", "plain"), [("offload", "full"), ("snapkv_offload", "snapkv")])
def test_what_is_offloaded_gives_the_same_tokens_and_leaves_the_device(technique: str, plain: str) -> None:
    model, allocated, said = on_device("llama", torch.float32), {}, {}
    for name in (plain, technique, plain, technique):  # what is allocated once for all comes with the first ones
        gc.collect()
        before = torch.cuda.memory_allocated()
        decoder, following = prefilled(name, model, headroom=200)
        tokens = [following[:, :1]]
        with decoder:
            for _ in range(N_STEPS):
                tokens.append(decoder.feed(tokens[-1]).argmax(-1, keepdim=True))
        said[name] = torch.cat(tokens, dim=1).tolist()
        del tokens, following
        allocated[name] = torch.cuda.memory_allocated() - before
        assert (decoder.kv_bytes_offloaded > 0) == (name == technique)
        del decoder
    assert said[technique] == said[plain]
    assert allocated[technique] < allocated[plain]


# Each with the numbers that it is given; many enough for kernels that are compiled.
STORAGES: dict[str, tuple[Callable[[], Any], torch.dtype]] = {
    "kv_int8": (partial(PerTokenStorage, Contiguous(), bits=8), torch.bfloat16),
    "kv_int4": (partial(PerTokenStorage, Contiguous(), bits=4), torch.float32),
    "kivi": (partial(KiviStorage, Contiguous(), bits=4), torch.bfloat16),
    "paged": (partial(PagedStorage, DensePages(), 16), torch.bfloat16),
    "paged_int8": (lambda: PagedStorage(PerTokenPages(8), 16), torch.float32),
}


@pytest.mark.parametrize("name", STORAGES)
@torch.inference_mode()
def test_compiled_products_are_those_of_plain_operations_and_can_be_captured(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_storage, dtype = STORAGES[name]
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 1, 2, 4200, 64, generator=generator).to(DEVICE, dtype)
    query = torch.randn(1, 8, 1, 64, generator=generator).to(DEVICE)
    compiling, plain = new_storage(), new_storage()
    graphs, n_compiled, n_prompt = Graphs(), set(), 4100

    def step(storage: Any, n_held: int) -> Tensor:
        new = slice(n_held, n_held + 1)
        storage.append(n_held, key[:, :, new], value[:, :, new])
        return storage.attend(query, n_held + 1, None, scaling=0.125, softcap=None)  # type: ignore[no-any-return]

    for storage in (compiling, plain):
        storage.load(key[:, :, :n_prompt], value[:, :, :n_prompt], 4200)
    for n_held in range(n_prompt, 4200):
        launched = n_held < n_prompt + 40  # past a block, and a group
        one = partial(step, compiling, n_held)
        got = one() if launched else replayed(graphs, one)
        n_compiled.add(counters["stats"]["unique_graphs"])
        with monkeypatch.context() as patch:
            patch.setattr(packing, "_WORTH_COMPILING", 1 << 40)
            expected = step(plain, n_held)
        assert (got - expected).norm() < 1e-3 * expected.norm()
    assert len(n_compiled) == 1 and n_compiled != {0}
