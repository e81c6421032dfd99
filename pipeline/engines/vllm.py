"""vLLM (Kwon et al. 2023, arXiv:2309.06180) in its own environment and process, on the weights that we saved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import ROOT
from pipeline.engines import vllm_worker
from pipeline.engines.serving import Blocks, Loaded, Request, Served
from pipeline.engines.worker import Worker

ENVIRONMENT = ROOT / ".venv-vllm"
REMEDY = "make vllm"
START_S = 300.0  # it imports for a quarter of a minute on an idle machine
PRELOADED = ("lib/libiomp5.so", "lib/python*/site-packages/vllm/libs/libtcmalloc_minimal*.so*")  # as its manual asks


class VLLM:
    """`kv_cache_dtype`: what keys and values are held in; `auto` is the model's own. `kv_cache_memory_bytes`: of the
    pool of blocks, all of which is allocated at the start. `timeout_s`: of one trial.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        kv_cache_dtype: str = "auto",
        kv_cache_memory_bytes: int,
        block_size: int,
        max_model_len: int,
        max_num_seqs: int,
        prefix_caching: bool = False,
        timeout_s: float = 600.0,
        python: Path = ENVIRONMENT / "bin/python",
    ) -> None:
        self.loaded = loaded
        self.is_exact = kv_cache_dtype == "auto"
        self.timeout_s, self.python = timeout_s, python
        self.options = {
            "model": str(loaded.folder),
            "dtype": loaded.dtype,
            "seed": loaded.seed,
            "kv_cache_dtype": kv_cache_dtype,
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
            "block_size": block_size,
            "max_model_len": min(max_model_len, loaded.model.config.max_position_embeddings),
            "max_num_seqs": max_num_seqs,
            "enable_prefix_caching": prefix_caching,
            "enforce_eager": loaded.model.device.type == "cpu",  # elsewhere it captures CUDA graphs
        }
        self.start_up_s = 0.0
        self.version: str | None = None
        self._worker: Worker | None = None

    def start(self) -> None:
        """Raises ImportError where its environment is missing, WorkerFailed where it does not start."""
        if not self.python.exists():
            raise ImportError(f"there is no {self.python.parent.parent.name} with vLLM in it; valid: {REMEDY}")
        started = time.perf_counter()
        command = [str(self.python), "-P", vllm_worker.__file__]  # beside it lies a module that is called vllm as well
        self._worker = Worker(command, _environment(self.python, self.loaded.n_threads), START_S)
        self._pool = self._worker.ask("start", **self.options)
        self._worker.timeout_s = self.timeout_s
        self.version = self._pool.pop("version")
        self.start_up_s = time.perf_counter() - started

    def serve(self, requests: Sequence[Request]) -> Served:
        answer = self._generated(requests)
        blocks = Blocks(**self._pool, **{name: answer[name] for name in _COUNTED})
        return Served(
            answer["tokens"],
            answer["token_s"],
            kv_bytes_allocated=blocks.n_blocks * blocks.block_bytes,
            kv_bytes_used=blocks.n_used * blocks.block_bytes,
            blocks=blocks,
        )

    def said(self, requests: Sequence[Request]) -> tuple[list[list[int]], list[np.ndarray]]:
        """Greedy tokens of each request, and the log-probabilities [N, V] that each of them was chosen by."""
        answer = self._generated(requests, logprobs=True)
        return answer["tokens"], [np.asarray(rows) for rows in answer["logprobs"]]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _generated(self, requests: Sequence[Request], **options: Any) -> dict[str, Any]:
        if self._worker is None:
            raise RuntimeError("vLLM was not started")
        return self._worker.ask("generate", requests=[asdict(one) for one in requests], **options)


_COUNTED = ("n_used", "n_preemptions", "n_prefix_tokens", "n_prefix_hits")


def _environment(python: Path, n_threads: int) -> dict[str, str]:
    """Everything in one process, no network, our number of threads, which sleep as soon as there is nothing to do."""
    root = python.parent.parent
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(n_threads),
        "KMP_BLOCKTIME": "1",
        "LD_PRELOAD": ":".join(str(found) for pattern in PRELOADED for found in sorted(root.glob(pattern))[:1]),
        "PYTHONPATH": "",
    }
