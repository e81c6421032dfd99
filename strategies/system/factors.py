"""The best factors of a matrix: W ≈ up · down, with up [n_out, rank] and down [rank, n_in].

Eckart and Young: of all matrices of that rank, none has a smaller squared error than the sum of the squared singular
values that are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from strategies.system.linears import linears, matrix


@dataclass(frozen=True)
class Factors:
    """All of them: columns of `up` are orthonormal, rows of `down` as long as the singular values, longest first."""

    up: Tensor
    down: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Factors:
        """[n_out, n_in], in single precision at least. By the eigenvectors of the smaller of W·Wᵀ and Wᵀ·W: an SVD
        takes three times as long. Each product of an eigenvector with the matrix itself is then exact to rounding."""
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        if wide.shape[0] <= wide.shape[1]:
            up = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)
            return cls(up, up.T @ wide)
        down = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T
        up = wide @ down.T
        length = up.norm(dim=0).clamp_min(torch.finfo(up.dtype).tiny)
        return cls(up / length, down * length[:, None])

    def first(self, rank: int) -> tuple[Tensor, Tensor]:
        """up [n_out, rank] and down [rank, n_in], in memory of their own."""
        return self.up[:, :rank].clone(memory_format=torch.contiguous_format), self.down[:rank].clone()

    def rank_of(self, energy: float) -> int:
        """The fewest that hold this share of the squared singular values."""
        kept = self.down.square().sum(1).cumsum(0)
        return min(int((kept < energy * kept[-1]).sum()) + 1, len(kept))


def require_rank(model: PreTrainedModel, rank: int) -> None:
    """Raises ValueError where a matrix of `model` has no such rank."""
    for name, linear in linears(model).items():
        shape = tuple(matrix(linear).shape)
        if not 1 <= rank <= min(shape):
            raise ValueError(f"rank={rank}: {name} is a matrix of {shape}; valid: 1 to {min(shape)}")
