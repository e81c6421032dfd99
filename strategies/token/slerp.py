"""Two vectors held as one direction between them and two lengths (arXiv 2405.14366)."""

from __future__ import annotations

import torch
from torch import Tensor

_FLAT = 1e-4  # sine of an angle below which the arc is a straight line, or has no one way


def between(lower: Tensor, upper: Tensor, t: float) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """lower, upper [..., D] → the unit vector at `t` of the arc from one to the other, both norms and the angle [...].

    In single precision at least. Where the arc is a line, its point is taken and stretched to length 1.
    """
    wide = torch.promote_types(lower.dtype, torch.float32)
    lower, upper = lower.to(wide), upper.to(wide)
    norms = lower.norm(dim=-1), upper.norm(dim=-1)
    first, second = (torch.where(norm > 0, norm, 1.0) for norm in norms)
    cosine = ((lower * upper).sum(-1) / first / second).clamp(-1, 1)
    angle = cosine.acos()
    flat = angle.sin() < _FLAT
    sine = torch.where(flat, 1.0, angle.sin())
    of_lower = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)
    of_upper = torch.where(flat, t, (t * angle).sin() / sine)
    direction = lower * (of_lower / first)[..., None] + upper * (of_upper / second)[..., None]
    length = direction.norm(dim=-1, keepdim=True)  # 1 but where the arc is a line, or one of both is zero
    direction = direction / torch.where(length > 0, length, 1.0)
    return direction, norms, angle
