"""The ways of holding weights that tests go through, and the small models that they are tried on."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from strategies.system.bnb import Bnb8bit, BnbNf4
from strategies.system.lorc import LowRankCorrection
from strategies.system.low_rank_int8 import LowRankInt8
from strategies.system.transform import Transform
from tests.strategies.models import family, prompt

TRANSFORMS: dict[str, Transform] = {
    "bnb_int8": Bnb8bit(threshold=0),  # above it a batch decides together what stands out, so its rows are not alone
    "bnb_nf4": BnbNf4(),
    "bnb_nf4_single": BnbNf4(double_quant=False),
    "low_rank_int8": LowRankInt8(rank=4),
    "low_rank_int8_mixed": LowRankInt8(rank=12),  # where some layers are smaller as they are
    "lorc": LowRankCorrection(rank=4),
    "l2qer": LowRankCorrection(rank=4, scaled=True),
}
FAMILIES = ("gpt2", "llama")
IDS = prompt(4, 32, seed=5)  # to calibrate with


def plain(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of its own."""
    return copy.deepcopy(family(name)).to(dtype)


def held(name: str, transform: Transform, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """One whose weights are held so."""
    model = plain(name, dtype)
    transform(model, IDS if transform.needs_calibration else None)
    return model
