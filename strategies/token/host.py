"""Room on the host: a temporary file for a model that computes there, else memory that a device can copy from."""

from __future__ import annotations

import math
import os
import tempfile

import torch
from torch import Tensor


class HostRoom:
    """Where the tensors of an offloaded layer come from; `device` is the model's, known with its first tokens."""

    device = torch.device("cpu")

    @property
    def host(self) -> torch.device:
        return torch.device("cpu") if self.device.type == "cuda" else self.device

    def allocate(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised room of `shape` with the dtype of `like`."""
        if self.host.type != "cpu" or not math.prod(shape):  # nothing to hold: shapes only, or no token
            return torch.empty(shape, dtype=like.dtype, device=self.host)
        if self.device.type == "cuda":
            return torch.empty(shape, dtype=like.dtype, pin_memory=True)
        return mapped(shape, like.dtype)

    def copied(self, tensor: Tensor) -> Tensor:
        """The same numbers in room of their own."""
        return self.allocate(tuple(tensor.shape), tensor).copy_(tensor)


def mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory-mapped room in a file that has no name any more: it goes with the tensor, or with the process.

    Torch counts it among its allocations, so a peak that the allocator reports has it in, as a process's resident size
    has; the system may write it out and take the memory back at any time. Raises OSError where the folder of temporary
    files (TMPDIR) has no room left.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    with tempfile.NamedTemporaryFile(prefix="kv-") as file:
        os.posix_fallocate(file.fileno(), 0, n_bytes)  # now, not by a crash at the first write that does not fit
        storage = torch.UntypedStorage.from_file(file.name, True, n_bytes)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
