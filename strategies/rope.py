"""Moving keys that already carry their rotary position (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Frequencies of these types do not depend on the length, so rotations compose.
_FIXED_TYPES = ("default", "linear", "llama3", "yarn")


class Rotation:
    """Turns the first R of D dimensions, dimension i together with i + R/2, by `frequency` [R/2] per position."""

    def __init__(self, frequency: Tensor) -> None:
        self.frequency = torch.cat([frequency, frequency])

    def prepare(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """key [..., D] → the part that turns and its quarter turn, both [..., R], in single precision at least.

        What does not depend on the shift is done once here, since sinks move in every step.
        """
        turning = key[..., : len(self.frequency)].to(torch.promote_types(key.dtype, torch.float32))
        first, second = turning.chunk(2, dim=-1)
        return turning.clone(), torch.cat([-second, first], dim=-1)

    def __call__(self, prepared: tuple[Tensor, Tensor], shift: Tensor) -> Tensor:
        """The turning part [..., R] of the keys, `shift` [] or [N, 1] positions later."""
        turning, quarter = prepared
        angle = (shift * self.frequency).to(turning.dtype)
        return torch.addcmul(turning * angle.cos(), quarter, angle.sin())

    def turned(self, key: Tensor, shift: Tensor) -> Tensor:
        """key [..., N, D], each token `shift` [N] positions later; what does not turn stays."""
        turning = self(self.prepare(key), shift[:, None]).to(key.dtype)
        return torch.cat([turning, key[..., turning.shape[-1] :]], dim=-1)


def rotation_of(model: PreTrainedModel) -> Rotation | None:
    """The rotation of a model's keys, or None without rotary positions.

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
    return Rotation(frequency)
