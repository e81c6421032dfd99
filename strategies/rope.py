"""Moving a key that already carries its rotary position (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

Rotate = Callable[[Tensor, Tensor], Tensor]

# Frequencies of these types do not depend on the length, so rotations compose.
_FIXED_TYPES = ("default", "linear", "llama3", "yarn")


def rotation_of(model: PreTrainedModel) -> Rotate | None:
    """A function (key [..., D], shift []) → the key `shift` positions later, or None without rotary positions.

    Raises ValueError for rotary variants whose frequencies change with the length or differ between layers.
    """
    rotary = next((module for name, module in model.named_modules() if name.endswith("rotary_emb")), None)
    if rotary is None:
        return None
    frequency = getattr(rotary, "inv_freq", None)
    kind = getattr(rotary, "rope_type", "default")
    if not isinstance(frequency, Tensor) or kind not in _FIXED_TYPES:
        raise ValueError(f"model={type(model).__name__}: rope_type={kind!r} cannot be moved; "
                         f"valid: {', '.join(_FIXED_TYPES)}, the same in all layers")  # fmt: skip

    def rotate(key: Tensor, shift: Tensor) -> Tensor:
        angle = shift.float() * frequency.to(key.device)
        first, second, rest = key.float().split([len(angle), len(angle), key.shape[-1] - 2 * len(angle)], dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(key.dtype)

    return rotate
