"""Moving keys that already carry their rotary position (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Frequencies of these types do not depend on the length, so rotations compose.
_FIXED_TYPES = ("default", "linear", "llama3", "yarn")

Prepared = tuple[Tensor, Tensor, Tensor]


class Rotation:
    """Turns the first R of D dimensions, dimension i together with i + R/2, by `frequency` [R/2] per position."""

    def __init__(self, frequency: Tensor) -> None:
        self.frequency = torch.cat([frequency, frequency])

    def prepare(self, key: Tensor) -> Prepared:
        """key [..., D] → the part that turns and its quarter turn, both [..., R], and the rest [..., D - R].

        In single precision at least. What does not depend on the shift is done once here: sinks move in every step.
        """
        key = key.to(torch.promote_types(key.dtype, torch.float32))
        turning, rest = key[..., : len(self.frequency)], key[..., len(self.frequency) :]
        first, second = turning.chunk(2, dim=-1)
        return turning.clone(), torch.cat([-second, first], dim=-1), rest.clone()

    def __call__(self, prepared: Prepared, shift: Tensor) -> Tensor:
        """The keys [..., D], `shift` [] or [N, 1] positions later; what does not turn stays."""
        turning, quarter, rest = prepared
        angle = (shift * self.frequency).to(turning.dtype)
        turned = torch.addcmul(turning * angle.cos(), quarter, angle.sin())
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def turned(self, key: Tensor, shift: Tensor) -> Tensor:
        """key [..., N, D], each token `shift` [N] positions later."""
        return self(self.prepare(key), shift[:, None]).to(key.dtype)


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
