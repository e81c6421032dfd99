"""What shapes say a run must cost, what this machine can do at best, and how much memory a run really took."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.record import Predicted

COPY_BYTES = 256 << 20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Ceilings:
    """The best this device does, in this process: no run is expected above it."""

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
    size = 8192 if device.startswith("cuda") else 2048
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    matmul_s = _best_s(lambda: torch.mm(left, right, out=product), device)
    return Ceilings(2 * source.nbytes / copy_s, 2 * size**3 / matmul_s)


def _best_s(work: Callable[[], object], device: str, n_repeats: int = 16, max_s: float = 2.0) -> float:
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
    """Keys and values of one token of one sequence, all layers, uncompressed."""
    n_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * n_kv_heads * _head_dim(config) * dtype.itemsize


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def prefill_flop(model: PreTrainedModel, seq_len: int, batch: int) -> float:
    """Matrix products of one prefill: 2 per weight and token, causal attention, the head at the last token only."""
    config = model.config
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight
    n_weights = sum(p.numel() for p in model.parameters() if id(p) not in embeddings | {id(head)})
    attention = 2 * config.num_hidden_layers * seq_len**2 * config.num_attention_heads * _head_dim(config)
    return float(batch * (2 * n_weights * seq_len + attention + 2 * head.numel()))


def weight_bytes_per_step(model: PreTrainedModel, weight_bytes: int) -> int:
    """Weights that one decode step reads: all but an embedding table that is only looked up."""
    lookup: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return weight_bytes if lookup.weight is head.weight else weight_bytes - lookup.weight.nbytes


def predict(
    model: PreTrainedModel, weight_bytes: int, *, seq_len: int, batch: int, kv_len: int, ceilings: Ceilings
) -> Predicted:
    """Cost from shapes alone. `kv_len`: tokens whose keys and values are held at the last step (0: recomputed)."""
    per_token = kv_bytes_per_token(model.config, model.dtype)
    held = batch * kv_len * per_token
    read = weight_bytes_per_step(model, weight_bytes) + held
    flop = prefill_flop(model, seq_len, batch)
    return Predicted(
        weight_bytes=weight_bytes,
        kv_bytes_per_token=per_token,
        kv_bytes_held=held,
        decode_bytes_per_step=read,
        decode_floor_s=read / ceilings.copy_bandwidth_bytes_per_s,
        prefill_flop=flop,
        prefill_floor_s=flop / ceilings.matmul_flop_per_s,
    )


def peak_growth(run: Callable[[], object], device: str) -> int | None:
    """Run it and return the most bytes it had on top of what was there before; None where that cannot be known.

    On CUDA the allocator's own count; on Linux the process's resident high-water mark, with the allocator's free
    memory given back first, so that reused pages are counted as well.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    resettable = _reset_high_water_mark()
    before = _status_bytes("VmRSS") if resettable else 0
    run()
    return max(0, _status_bytes("VmHWM") - before) if resettable else None


def _reset_high_water_mark() -> bool:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")
    except (OSError, AttributeError):  # no /proc, not allowed to write there, or another C library
        return False
    return True


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
