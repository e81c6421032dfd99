"""Decode steps as CUDA graphs: the same kernels on the same tensors, without the time that Python takes to launch them.

Launched one by one, the kernels of a step wait for the interpreter, tens of milliseconds for a large model whatever the
technique, and all techniques look alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LEAD_CYCLES = 10_000_000  # of a multiprocessor, some 5 ms: a first launch uploads its graph, which takes one or two


class Graphs:
    """Captures one step after the other, each to be replayed once, before the next.

    Their memory is one pool, which lasts as long as a graph that uses it: so each lives until the next is captured.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._latest: torch.cuda.CUDAGraph | None = None

    def captured(self, step: Callable[[], object]) -> Callable[[], None]:
        """Go through `step` once without computing anything; what is returned computes it.

        The device is kept busy until the caller has launched that, so that an event before it is one right before its
        first kernel. Raises RuntimeError for a step that waits for the device or reads the host's memory.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # not torch.cuda.graph, which gives all unused memory back each time
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                self._abandon(graph)
                raise
            graph.capture_end()
        self._latest = graph
        torch.cuda._sleep(LEAD_CYCLES)
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """A capture that an error has ended cannot be ended properly, and the allocator would wait for that."""
        try:
            graph.capture_end()
        except RuntimeError:
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
