"""Which machine this is and what runs on it: nothing that changes between two runs, and no torch.

`python -m pipeline.hardware` writes it to `hardware.json`, on which every measuring stage depends, and which engines
have an environment of their own to `engines.json`, on which theirs does.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pipeline import ROOT

IDENTITY_FILE = ROOT / "hardware.json"
ENGINES_FILE = ROOT / "engines.json"
_MAKERS_AND_FILLERS = {"intel", "amd", "nvidia", "geforce", "tesla", "r", "tm", "cpu", "gpu", "processor", "core"}


@lru_cache
def identity() -> dict[str, Any]:
    """Processor, cores, memory (GiB, rounded), GPUs with driver, operating system and architecture."""
    return {
        "cpu": _cpu_name(),
        "n_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _gpus(),
        "system": platform.system(),
        "machine": platform.machine(),
    }


def hardware_id() -> str:
    """A short folder name: readable head and a hash of the whole identity, `xeon-2c-23g-ab12cd`."""
    this = identity()
    digest = hashlib.sha256(json.dumps(this, sort_keys=True).encode()).hexdigest()[:6]
    gpus = [f"{len(this['gpus'])}x{_short(this['gpus'][0]['name'])}"] if this["gpus"] else []
    return "-".join([*gpus, _short(this["cpu"]), f"{this['n_cores']}c", f"{this['memory_gib']}g", digest])


def has_cuda() -> bool:
    """A GPU is present and not hidden, and the installed torch was not built for CPU only."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return bool(identity()["gpus"]) and not hidden and not metadata.version("torch").endswith("+cpu")


def n_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """The full Python version: its standard library is the text that quality is measured on."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"python": platform.python_version(), **packages}


def engines(root: Path = ROOT) -> dict[str, str | None]:
    """Engine -> its version in the environment that `make` built for it; None where there is none."""
    found = sorted((root / ".venv-vllm").glob("lib/python*/site-packages/vllm*.dist-info"))
    return {"vllm": found[0].name.removesuffix(".dist-info") if found else None}


def write_identity(path: Path = IDENTITY_FILE) -> bool:
    """Write the identity with what else a measurement depends on; False, and untouched, when nothing changed."""
    return _write(path, {"hardware_id": hardware_id(), **identity(), "n_usable_cores": n_usable_cores(),
                         "versions": versions()})  # fmt: skip


def write_engines(path: Path = ENGINES_FILE) -> bool:
    """As `write_identity`."""
    return _write(path, engines())


def _write(path: Path, here: dict[str, Any]) -> bool:
    text = json.dumps(here, indent=1) + "\n"
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return match[1].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, str]]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return []
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode != 0:  # a driver without a device
        return []
    rows = (line.split(", ") for line in answer.stdout.strip().splitlines())
    return [{"name": name, "memory": memory, "driver": driver} for name, memory, driver in rows]


def _short(name: str) -> str:
    """The first telling word: `Intel(R) Xeon(R) Platinum 8370C` becomes `xeon`."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return next((word for word in words if word not in _MAKERS_AND_FILLERS), "cpu")


if __name__ == "__main__":
    changed = write_identity()
    write_engines()
    print(f"{hardware_id()}{'' if changed else ' (unchanged)'}")
