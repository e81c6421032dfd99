"""What is held of tokens that two layers merge, and which of them are retained as they were (arXiv 2405.14366).

Shapes: B batch, H KV heads, n tokens, R retained, D head_dim. Pairs of tensors are those of the keys and the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.token.slerp import between

Both = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MergedTokens:
    """What the layers share, then what each has for itself, the lower one first."""

    directions: Both  # [B, H, n, D]
    slots: Both  # of the retained [B, H, R, 1]
    norms: tuple[Both, Both]  # [B, H, n, 1], 0 of the retained
    originals: tuple[Both, Both]  # [B, H, R, D]


@dataclass(frozen=True)
class Merging:
    """Directions at `t` of the arc; retained is one token in `block_size`, or what is as distant as `gamma` says."""

    t: float
    block_size: int
    gamma: float | None

    def __call__(self, lower: Both, upper: Both, least: Both | None) -> tuple[MergedTokens, Both]:
        """Keys and values [B, H, n, D] of two layers → what is held of them, and the `least` of a prompt.

        least [B, H, 1]: the angle from which tokens are retained; of a prompt it is not known yet. Heads that retain
        fewer than others have zeros for the rest.
        """
        arcs = [between(*layers, self.t) for layers in zip(lower, upper, strict=True)]
        angles = [angle for _, _, angle in arcs]
        n_retained = angles[0].shape[-1] // self.block_size
        if least is None:
            least = self._least(angles[0]), self._least(angles[1])
            if self.gamma is not None and not angles[0].is_meta:  # shapes alone do not say how many
                counts = [(angle >= bound).sum(-1) for angle, bound in zip(angles, least, strict=True)]
                n_retained = int(torch.stack(counts).max()) if n_retained else 0
        held = [
            _held(low, high, direction, norms, angle.topk(n_retained, dim=-1), bound)
            for low, high, (direction, norms, angle), bound in zip(lower, upper, arcs, least, strict=True)
        ]
        directions, slots, *own = ((key, value) for key, value in zip(*held, strict=True))
        return MergedTokens(directions, slots, (own[0], own[1]), (own[2], own[3])), least

    def _least(self, angle: Tensor) -> Tensor:
        if self.gamma is None or not angle.shape[-1]:
            return angle.new_zeros((*angle.shape[:2], 1))
        low, high = angle.aminmax(dim=-1, keepdim=True)
        return high - self.gamma * (high - low)


def _held(
    lower: Tensor, upper: Tensor, direction: Tensor, norms: Both, most: torch.return_types.topk, least: Tensor
) -> tuple[Tensor, ...]:
    """Of keys or of values: direction, slots, the two norms and the two originals."""
    retained, index = most.values >= least, most.indices[..., None].expand(-1, -1, -1, lower.shape[-1])
    merged = torch.ones_like(norms[0]).scatter(-1, most.indices, (~retained).to(norms[0].dtype))
    return (
        direction.to(lower.dtype),
        most.indices[..., None],
        *((norm * merged).to(lower.dtype)[..., None] for norm in norms),
        *(layer.gather(2, index) * retained[..., None] for layer in (lower, upper)),
    )
