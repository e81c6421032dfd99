"""What the `weights` axis asks of its parts. A point of the axis names some of them, applied in order.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel


class Transform(Protocol):
    """How the weights of a model are held, or prepared for being held; any class with this, none inherits."""

    @property
    def needs_calibration(self) -> bool:
        """Whether it has to see what goes into the layers; if not, it is given no tokens."""
        ...

    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Change `model` in place, in eval mode; `ids` [B, T] of training text, never of what is scored.

        A model on the meta device takes its new shapes, which are counted before anything is loaded. Raises ValueError
        for a model that it cannot be applied to, and for what does not go with a transform that came before; both
        before anything is changed.
        """
        ...
