"""What this machine does at plain jobs, how much memory is free, and how much a run really took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import psutil
import torch
from torch.autograd.profiler import profile, record_function

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # many times what the processor's own caches hold
LINK_BYTES = 256 << 20
LAP_ENDS = "[lap ends]"  # an event of ours between the profiler's
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself on stderr, every time


@dataclass(frozen=True)
class Ceilings:
    """The best this device did at plain jobs, in this process.

    Not a limit to everything: weights that fit into the processor's cache are read faster than memory.
    """

    copy_bandwidth_bytes_per_s: float  # of a large copy, bytes read plus bytes written
    matmul_flop_per_s: float
    link_bandwidth_bytes_per_s: float | None = None  # of a copy from the host; None where that is the device


def measured_ceilings(dtype: torch.dtype, device: str) -> Ceilings:
    """Measured once per process for each dtype, device and number of threads."""
    return _measured_ceilings(dtype, device, torch.get_num_threads())


@cache
def _measured_ceilings(dtype: torch.dtype, device: str, n_threads: int) -> Ceilings:
    source = torch.ones(COPY_BYTES[torch.device(device).type] // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device)
    size = 8192 if device.startswith("cuda") else _affordable_size(dtype)
    random = torch.Generator(device).manual_seed(0)  # equal numbers would cost a processor less power and time
    left, right = (torch.randn(size, size, dtype=dtype, device=device, generator=random) for _ in range(2))
    product = torch.empty_like(left)
    matmul_s = _best_s(lambda: torch.mm(left, right, out=product), device)
    return Ceilings(2 * source.nbytes / copy_s, 2 * size**3 / matmul_s, _link_bandwidth(device))


def _link_bandwidth(device: str) -> float | None:
    """Bytes per second from pages that a device copies from by itself."""
    if not device.startswith("cuda"):
        return None
    source = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return source.nbytes / _best_s(lambda: target.copy_(source, non_blocking=True), device)


def _affordable_size(dtype: torch.dtype) -> int:
    """Of a square product on the processor, which takes a minute for 2,048 where it has no kernel for this dtype."""
    small = torch.randn(256, 256, dtype=dtype)
    small_s = _best_s(lambda: torch.mm(small, small), "cpu", n_repeats=4)
    return max(size for size in (256, 512, 1024, 2048) if small_s * (size / 256) ** 3 < 0.25 or size == 256)


def _best_s(work: Callable[[], object], device: str, n_repeats: int = 256, max_s: float = 0.5) -> float:
    samples: list[float] = []
    work()  # the first touch pays for pages and kernels
    while len(samples) < n_repeats and sum(samples) < max_s:
        samples.append(_seconds_of(work, device))
    return min(samples)


def _seconds_of(work: Callable[[], object], device: str) -> float:
    """On the device's own clock, as `pipeline.timing.Stopwatch`."""
    if not device.startswith("cuda"):
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def available_bytes(device: str) -> float:
    """Memory that can be had without a fight; on CUDA also what the allocator keeps and no tensor uses."""
    if not device.startswith("cuda"):
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


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
