"""W8A8: weights and activations of the linear layers in 8 bits, multiplied as integers.

The granularities are those of SmoothQuant, https://arxiv.org/abs/2211.10438, with which it is named: O1 per_tensor and
per_token, O2 per_tensor and per_tensor, O3 per_tensor and static; per_channel and per_token is the later common form.
Unlike the paper's we leave the two products of attention to the cache, which has encodings of its own.
Shapes: M rows, K = n_in, N = n_out; "…" is any leading shape.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from strategies.system.integers import product, quantise, scale_of
from strategies.system.linears import Linear, linears, matrix, observe, replace

Weights = Literal["per_channel", "per_tensor"]
Activations = Literal["per_token", "per_tensor", "static"]


class W8A8:
    """Every linear layer of the blocks, held as int8 [N, K] with its scales."""

    def __init__(self, weights: Weights = "per_channel", activations: Activations = "per_token"):
        for name, value, valid in (("weights", weights, Weights), ("activations", activations, Activations)):
            if value not in get_args(valid):
                raise ValueError(f"{name}={value}: unknown; valid: {', '.join(get_args(valid))}")
        self.weights, self.activations = weights, activations

    @property
    def needs_calibration(self) -> bool:
        return self.activations == "static"

    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ValueError for a model without plain linear layers, and for static scales without calibration."""
        largest = self._largest(model, ids)
        for name, linear in linears(model).items():
            replace(model, name, W8A8Linear(linear, self.weights, self.activations, largest.get(name)))

    def _largest(self, model: PreTrainedModel, ids: Tensor | None) -> dict[str, Tensor]:
        """The largest magnitude that goes into each layer; on the meta device nothing is known but that it is one."""
        if not self.needs_calibration:
            return {}
        if model.device.type == "meta":
            return dict.fromkeys(linears(model), torch.empty((), device="meta"))
        if ids is None or ids.numel() == 0:
            raise ValueError("calibration=empty: activations=static needs to see some; valid: at least one token")
        largest: dict[str, Tensor] = {}
        observe(model, ids, lambda name, entering: largest.update({name: entering.abs().amax().float()}))
        return largest


class W8A8Linear(nn.Module):
    """A linear layer whose weight and input are integers; its scales are float32, whatever the model is.

    `codes` is not called `weight`, so that no code takes it for one.
    """

    codes: Tensor
    scale: Tensor
    activation_scale: Tensor | None

    def __init__(self, linear: Linear, weights: Weights, activations: Activations, largest: Tensor | None):
        super().__init__()
        weight = matrix(linear).detach().float()
        self.out_features, self.in_features = weight.shape
        self.activations = activations
        scale = scale_of(weight.abs().amax(1) if weights == "per_channel" else weight.abs().amax()[None])
        self.register_buffer("codes", quantise(weight, scale[:, None]).contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("activation_scale", None if largest is None else scale_of(largest))
        self.bias = linear.bias

    def forward(self, entering: Tensor) -> Tensor:
        """[..., K] → [..., N], in the dtype that comes in."""
        rows = entering.reshape(-1, self.in_features)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        row_scale = self._row_scale(rows)
        leaving = product(quantise(rows, row_scale), self.codes).mul_(row_scale).mul_(self.scale)
        if self.bias is not None:
            leaving.add_(self.bias)
        return leaving.to(entering.dtype).view(*entering.shape[:-1], self.out_features)

    def _row_scale(self, rows: Tensor) -> Tensor:
        """What one code of the input is worth: [M, 1] per token, else one for all."""
        if self.activation_scale is not None:
            return self.activation_scale
        dim = (1,) if self.activations == "per_token" else (0, 1)
        return scale_of(rows.abs().amax(dim, keepdim=True))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, activations={self.activations}"
