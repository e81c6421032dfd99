"""Weights through bitsandbytes: LLM.int8() (arXiv 2208.07339) and NF4 (QLoRA, arXiv 2305.14314).

The matrices of the blocks are held in 8 or 4 bits. What stays in the dtype of the model: embeddings, the head, norms,
and biases. bitsandbytes rounds what goes into an 8-bit layer to float16, whatever the dtype of the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from strategies.system.linears import Linear, linears, matrix, replace


@dataclass(frozen=True)
class Bnb8bit:
    """One scale per output, and per token for what goes in; inputs of at least `threshold` go through in 16 bits."""

    threshold: float = 6.0
    needs_calibration = False

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ImportError where bitsandbytes is missing, ValueError for a model without plain weights."""
        bitsandbytes = _bitsandbytes()
        for name in tuple(linears(model)):
            replace(model, name, self._held(bitsandbytes, model.get_submodule(name)))  # type: ignore[arg-type]

    def _held(self, bitsandbytes: Any, linear: Linear) -> nn.Module:
        codes, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(matrix(linear).contiguous().half())
        n_out, n_in = codes.shape
        held = bitsandbytes.nn.Linear8bitLt(
            n_in, n_out, bias=False, has_fp16_weights=False, threshold=self.threshold, device="meta"
        )
        held.weight = bitsandbytes.nn.Int8Params(
            codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scale
        )
        held.bias = linear.bias
        return held.eval()


@dataclass(frozen=True)
class BnbNf4:
    """16 levels of a normal distribution and a scale for every 64 weights, itself in 8 bits with `double_quant`.

    On a CPU with AVX512-BF16 bitsandbytes would lay weights out anew at the first step, undo double quantisation and
    compute in bfloat16. That is switched off: what is held and computed is what was asked for.
    """

    double_quant: bool = True
    needs_calibration = False

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ImportError where bitsandbytes is missing, ValueError for float64 or a model without plain weights."""
        if model.dtype == torch.float64:
            raise ValueError("dtype=float64: bitsandbytes has no 4 bits for it; valid: float32, bfloat16, float16")
        bitsandbytes = _bitsandbytes()
        with torch.device("cpu"):  # the first call makes a table that is kept for good: never without values, on meta
            bitsandbytes.functional.quantize_blockwise(torch.zeros(1))
        tables: dict[int, Tensor] = {}
        for name in tuple(linears(model)):
            replace(model, name, self._held(bitsandbytes, model.get_submodule(name), tables))  # type: ignore[arg-type]

    def _held(self, bitsandbytes: Any, linear: Linear, tables: dict[int, Tensor]) -> nn.Module:
        """`tables`: the levels by their number, which are the same for all layers."""
        weight = matrix(linear).contiguous()
        n_out, n_in = weight.shape
        codes, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=self.double_quant, quant_type="nf4"
        )
        for each in filter(None, (state, state.state2)):
            each.code = tables.setdefault(len(each.code), each.code)
        held = bitsandbytes.nn.Linear4bit(n_in, n_out, bias=False, compute_dtype=weight.dtype, device="meta")
        held.weight = bitsandbytes.nn.Params4bit(codes, quant_type="nf4", quant_state=state, bnb_quantized=True)
        held.bias = linear.bias
        held.support_avx512bf16_for_cpu = False
        return held.eval()


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError("bitsandbytes is not installed: pip install bitsandbytes") from error
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
    return bitsandbytes


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is not what every call of an 8-bit layer says about its inputs."""
    return "inputs will be cast" not in record.getMessage()
