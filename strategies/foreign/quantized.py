"""Transformers' QuantizedCache (after KIVI, arXiv 2402.02750): old tokens in few bits, the newest as they are.

Each step turns everything back into wide numbers to attend, so memory is saved between steps and not within them.
Groups run along the channels of a token, for keys too, where the paper quantises keys along the tokens.
"""

from __future__ import annotations

import shutil
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, QuantizedCache

from strategies.foreign.stock import StockAttention, require_full_attention

PACKAGES = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}  # module, and what pip calls it
LONGEST_BUILD_S = 300  # it takes half a minute
_PACKED = ("_quantized_keys", "_quantized_values")


class StockQuantizedCache(StockAttention, QuantizedCache):
    @property
    def bytes_logical(self) -> int:
        """Everything that is held is kept: packed numbers, their scales, and the newest tokens."""
        return self.bytes_held

    def uncopied(self) -> list[Any]:
        """Packed numbers are replaced and never written into."""
        return [item for layer in self.layers for name, item in vars(layer).items() if name in _PACKED]


def quantized_cache(
    model: PreTrainedModel,
    *,
    kv_budget: None,
    headroom: int,
    backend: str,
    nbits: int,
    q_group_size: int,
    residual_length: int,
) -> StockQuantizedCache:
    """`residual_length`: so many newest tokens stay wide before all are quantised at once.

    Raises ImportError where the backend's package is missing, NotImplementedError where it cannot run, and ValueError
    for numbers that the backend or the model does not allow.
    """
    require_full_attention(model, "hf_quantized")
    on_cpu = model.device.type == "cpu"
    _require(backend, on_cpu=on_cpu)
    if backend == "quanto" and on_cpu:
        _unlock(_folder_of(backend) / "library/extensions/cpp/build")
    try:
        return StockQuantizedCache(
            backend, model.config, nbits, q_group_size=q_group_size, residual_length=residual_length
        )
    except ValueError as error:
        raise ValueError(f"strategy.cache.nbits={nbits}: {error}") from None


def _require(backend: str, *, on_cpu: bool) -> None:
    if backend not in PACKAGES:
        raise ValueError(f"strategy.cache.backend={backend}: unknown; valid: {', '.join(PACKAGES)}")
    module, package = PACKAGES[backend]
    if not _is_there(module):
        why = f"strategy.cache.backend={backend}: the package {package} is not installed"
        raise ImportError(f"{why}; valid: pip install {package}", name=module)
    if backend == "quanto" and on_cpu and not _can_compile():
        why = "strategy.cache.backend=quanto: compiles its CPU kernel at the first step, which is not possible here"
        raise NotImplementedError(f"{why}; valid: a C++ compiler and ninja on the PATH, or another backend or device")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _folder_of(backend: str) -> Path:
    spec = find_spec(PACKAGES[backend][0])
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _unlock(build: Path) -> None:
    """Torch waits forever for whoever builds an extension, also for a process that was killed meanwhile."""
    lock = build / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > LONGEST_BUILD_S:
        lock.unlink(missing_ok=True)


@cache
def _can_compile() -> bool:
    from torch.utils.cpp_extension import get_cxx_compiler, is_ninja_available

    return is_ninja_available() and shutil.which(get_cxx_compiler()) is not None
