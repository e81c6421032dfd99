"""Channels of activations that are far larger than all others, as large language models have and small ones do not.

Put in by an exact rescaling: the model computes what it computed before, in the classes of Transformers. What 8 bits
then lose, they lose to the outliers, for which LLM.int8() and SmoothQuant were made.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from strategies.system.norms import fed_by_norms


class Outliers:
    """`n_channels` of what each norm of a block gives become `factor` times as large, and are read as much smaller.

    The same random channels in all blocks, as in large models.
    """

    needs_calibration = False

    def __init__(self, n_channels: int = 2, factor: float = 100.0, seed: int = 0) -> None:
        self.n_channels = n_channels
        self.factor = factor
        self.seed = seed

    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ValueError where a channel is not there, and for blocks whose norms we do not know."""
        width = model.config.hidden_size
        if not 0 < self.n_channels <= width:
            raise ValueError(f"n_channels={self.n_channels}: the model has {width}; valid: 1 … {width}")
        generator = torch.Generator().manual_seed(self.seed)
        channels = torch.randperm(width, generator=generator)[: self.n_channels]
        for fed in fed_by_norms(model):
            factors = torch.ones(width, device=model.device)
            factors[channels] = 1 / self.factor
            fed.rescale(factors)
