"""What shapes say a run must cost, what this machine does at plain jobs, and how much memory a run really took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch
from torch import nn
from torch.autograd.profiler import profile, record_function
from transformers import PreTrainedModel

from pipeline.decoding import Decoder
from pipeline.record import Predicted

COPY_BYTES = 256 << 20
LAP_ENDS = "[lap ends]"  # an event of ours between the profiler's
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself on stderr, every time


@dataclass(frozen=True)
class Ceilings:
    """The best this device did at two plain jobs, in this process.

    Not a limit to everything: weights that fit into the processor's cache are read faster than memory.
    """

    copy_bandwidth_bytes_per_s: float  # of a large copy, bytes read plus bytes written
    matmul_flop_per_s: float


def measured_ceilings(dtype: torch.dtype, device: str) -> Ceilings:
    """Measured once per process for each dtype, device and number of threads."""
    return _measured_ceilings(dtype, device, torch.get_num_threads())


@cache
def _measured_ceilings(dtype: torch.dtype, device: str, n_threads: int) -> Ceilings:
    source = torch.ones(COPY_BYTES // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device)
    size = 8192 if device.startswith("cuda") else _affordable_size(dtype)
    random = torch.Generator(device).manual_seed(0)  # equal numbers would cost a processor less power and time
    left, right = (torch.randn(size, size, dtype=dtype, device=device, generator=random) for _ in range(2))
    product = torch.empty_like(left)
    matmul_s = _best_s(lambda: torch.mm(left, right, out=product), device)
    return Ceilings(2 * source.nbytes / copy_s, 2 * size**3 / matmul_s)


def _affordable_size(dtype: torch.dtype) -> int:
    """Of a square product on the processor, which takes a minute for 2,048 where it has no kernel for this dtype."""
    small = torch.randn(256, 256, dtype=dtype)
    small_s = _best_s(lambda: torch.mm(small, small), "cpu", n_repeats=4)
    return max(size for size in (256, 512, 1024, 2048) if small_s * (size / 256) ** 3 < 0.25 or size == 256)


def _best_s(work: Callable[[], object], device: str, n_repeats: int = 16, max_s: float = 0.5) -> float:
    samples: list[float] = []
    work()  # the first touch pays for pages and kernels
    while len(samples) < n_repeats and sum(samples) < max_s:
        _synchronise(device)
        started = time.perf_counter()
        work()
        _synchronise(device)
        samples.append(time.perf_counter() - started)
    return min(samples)


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token of one sequence, all layers, uncompressed; 0 where there is no attention."""
    n_kv_heads = getattr(config, "num_key_value_heads", None) or _n_heads(config)
    return 2 * config.num_hidden_layers * n_kv_heads * _head_dim(config) * dtype.itemsize


def _n_heads(config: Any) -> int:
    return getattr(config, "num_attention_heads", 0)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // max(_n_heads(config), 1)


def prefill_flop(model: PreTrainedModel, seq_len: int, batch: int) -> float:
    """Matrix products of one prefill: 2 per weight and token, causal attention, the head at the last token only.

    What a recurrent layer computes besides, in its state, is not in it.
    """
    config = model.config
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight
    n_weights = sum(p.numel() for p in model.parameters() if id(p) not in embeddings | {id(head)})
    attention = 2 * config.num_hidden_layers * seq_len**2 * _n_heads(config) * _head_dim(config)
    return float(batch * (2 * n_weights * seq_len + attention + 2 * head.numel()))


def weight_bytes(model: PreTrainedModel) -> int:
    """Tied weights count once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def weight_bytes_per_step(model: PreTrainedModel) -> int:
    """Weights that one decode step reads: all but an embedding table that is only looked up."""
    lookup: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return weight_bytes(model) - (0 if lookup.weight is head.weight else lookup.weight.nbytes)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one cache, whole batch and all layers, as it counts them itself."""

    logical: int  # of the tokens kept half-way through decoding: what a step reads
    held: int  # at the last step


def footprint(new_decoder: Callable[[int], Decoder], seq_len: int, batch: int, n_new_tokens: int) -> Footprint | None:
    """By a prompt and one step on the meta device, where they take no memory and little time; None without a cache.

    `new_decoder`: given the number of tokens that will follow the prompt, of a model on the meta device. What the step
    adds is added by every other one. Raises whatever the technique and the model raise; RuntimeError for what asks
    tensors for values, which have none there.
    """
    with new_decoder(n_new_tokens) as decoder:
        if decoder.cache is None:
            return None
        ids_BT = torch.zeros(batch, seq_len + 1, dtype=torch.long, device="meta")
        decoder.foresee(ids_BT, seq_len)
        prompt_BT, next_B1 = ids_BT.tensor_split([seq_len], dim=1)
        decoder.feed(prompt_BT)
        logical, held = decoder.kv_bytes_logical, decoder.kv_bytes_held
        decoder.feed(next_B1)

    def after(n_steps: int, before: int, now: int) -> int:
        return now + max(now - before, 0) * max(n_steps - 1, 0)  # what is given back, is given back once

    return Footprint(
        logical=after(n_new_tokens // 2, logical, decoder.kv_bytes_logical),
        held=after(n_new_tokens, held, decoder.kv_bytes_held),
    )


def estimated(
    model: PreTrainedModel, kv_budget: int | None, *, seq_len: int, batch: int, n_new_tokens: int
) -> Footprint:
    """Of a cache whose shapes depend on data: the budget, in the model's own numbers."""

    def held(n_seen: int) -> int:
        return batch * kv_bytes_per_token(model.config, model.dtype) * min(n_seen, kv_budget or n_seen)

    return Footprint(held(seq_len + n_new_tokens // 2), held(seq_len + n_new_tokens))


def predict(
    model: PreTrainedModel, cache: Footprint | None, *, seq_len: int, batch: int, ceilings: Ceilings
) -> Predicted:
    """Cost from shapes alone, so the model may be on the meta device. No `cache`: every step computes all again."""
    read = weight_bytes_per_step(model) + (cache.logical if cache else 0)
    read_s = read / ceilings.copy_bandwidth_bytes_per_s
    flop = prefill_flop(model, seq_len, batch)
    prefill_s = flop / ceilings.matmul_flop_per_s
    return Predicted(
        weight_bytes=weight_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model.config, model.dtype),
        kv_bytes_held=cache.held if cache else 0,
        decode_bytes_per_step=read,
        decode_floor_s=read_s if cache else max(read_s, prefill_s),
        prefill_flop=flop,
        prefill_floor_s=prefill_s,
    )


def available_bytes(device: str) -> float:
    """Memory that can be had without a fight. Infinite on CUDA, where the allocator refuses by an error of its own;
    a processor that runs out of memory has the whole process killed.
    """
    return float("inf") if device.startswith("cuda") else psutil.virtual_memory().available


def peak_growths(laps: Iterable[object], device: str) -> list[int]:
    """Exhaust `laps`; for each item the most bytes that tensors took at once while it was made, on top of what was
    there before the first.

    Counted by the allocator, so the same work gives the same numbers; what libraries take behind its back is not in it.
    """
    return _counted_by_cuda(laps) if device.startswith("cuda") else _counted_by_profiler(laps)


def _counted_by_cuda(laps: Iterable[object]) -> list[int]:
    before = torch.cuda.memory_allocated()
    peaks: list[int] = []
    torch.cuda.reset_peak_memory_stats()
    for _ in laps:
        peaks.append(torch.cuda.max_memory_allocated() - before)
        torch.cuda.reset_peak_memory_stats()
    return peaks


def _counted_by_profiler(laps: Iterable[object]) -> list[int]:
    with profile(profile_memory=True) as recorded:
        for _ in laps:
            with record_function(LAP_ENDS):
                pass
    assert recorded.kineto_results is not None
    kept = (event for event in recorded.kineto_results.events() if event.name() in ("[memory]", LAP_ENDS))
    peaks: list[int] = []
    taken = highest = 0
    for event in sorted(kept, key=lambda event: event.start_ns()):
        if event.name() == LAP_ENDS:
            peaks.append(highest)
            highest = taken
        else:
            taken += event.nbytes()
            highest = max(highest, taken)
    return peaks
