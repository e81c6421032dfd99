"""What the full cache said, kept between processes: every technique is compared with the same logits.

They are deterministic, so a file is named by the hash of all that they depend on, and holds the hash of what is in it.
A file that is missing or spoilt is computed again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline import ROOT
from pipeline.quality import Continuation

FOLDER = ROOT / ".cache/baseline"
MAX_BYTES = 1 << 30  # of the folder; the oldest files go first
MAX_SHARE = 16  # a file may be no larger than 1 / MAX_SHARE of it


@dataclass(frozen=True)
class BaselineFiles:
    """`key`: hash of everything but the tokens."""

    key: str
    folder: Path

    def recall(self, asked: tuple[Tensor, ...], compute: Callable[[], Continuation]) -> Continuation:
        """What `compute` returns for these tensors, from its file or computed and written."""
        digest = hashlib.sha256(self.key.encode() + "".join(_sha256(tensor) for tensor in asked).encode())
        path = self.folder / f"{digest.hexdigest()}.safetensors"
        found = _read(path)
        if found is None:
            found = compute()
            if found.logits.nbytes * MAX_SHARE <= MAX_BYTES:
                _write(path, found)
        return found


def _read(path: Path) -> Continuation | None:
    try:
        with safe_open(path, "pt") as file:
            logits, said = file.get_tensor("logits"), file.metadata() or {}
        if said["sha256"] != _sha256(logits):
            return None
        return Continuation(logits, int(said["kv_bytes_held"]), int(said["kv_bytes_offloaded"]))
    except (OSError, SafetensorError, LookupError, ValueError):
        return None


def _write(path: Path, found: Continuation) -> None:
    """So that the file is there whole or not at all; where nothing can be written, it is computed again next time."""
    logits = found.logits.cpu().contiguous()
    said = {"sha256": _sha256(logits), "kv_bytes_held": found.kv_bytes_held,
            "kv_bytes_offloaded": found.kv_bytes_offloaded}  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
            save_file({"logits": logits}, half := Path(scratch, path.name), {k: str(v) for k, v in said.items()})
            os.replace(half, path)
        _make_room(path.parent)
    except OSError:
        return


def _make_room(folder: Path) -> None:
    """Another process may remove the same file first."""
    newest_first = sorted(folder.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime_ns)
    total = 0
    for path in newest_first:
        total += path.stat().st_size
        if total > MAX_BYTES:
            path.unlink(missing_ok=True)


def _sha256(tensor: Tensor) -> str:
    raw = tensor.cpu().contiguous()
    shape = f"{raw.dtype}{tuple(raw.shape)}".encode()
    return hashlib.sha256(shape + raw.view(torch.uint8).numpy().tobytes()).hexdigest()
