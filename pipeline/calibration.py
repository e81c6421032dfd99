"""What a technique is calibrated on before it is measured: training text, and never what is scored."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipeline import corpus, models, text
from pipeline.config import Model
from pipeline.folders import TOKENIZER
from strategies.calibration import calibrate, calibration_of
from strategies.token.parts import Calibrated

N_TOKENS = 2048
N_FILES = 24  # more than enough for so many tokens


def ensure(build: Any, model: Any, spec: Model) -> None:
    """Calibrate `model`, once in its life, where the cache that `build` makes needs it.

    The tokens depend on the model alone, so that no cell depends on those before it.
    """
    encoding = getattr(build, "keywords", {}).get("encoding")
    if isinstance(encoding, Calibrated) and calibration_of(model) is None:
        with models.quiet():
            calibrate(model, calibration_ids(spec, model.config).to(model.device))


def calibration_ids(spec: Model, config: Any) -> Tensor:
    """`N_TOKENS` [B, T] in rows as long as the model's positions allow.

    Text of the training files of the standard library, in the model's own tokens; random ones for random weights and
    where there is no tokenizer.
    """
    length = min(N_TOKENS, getattr(config, "max_position_embeddings", None) or N_TOKENS)
    place = models.folder(spec.source, spec.path, spec.revision)
    if place is None or not (place / TOKENIZER).is_file():
        generator = torch.Generator().manual_seed(0)
        return torch.randint(config.vocab_size, (N_TOKENS // length, length), generator=generator)
    documents = list(islice(corpus.texts(held_out=False), N_FILES))
    tokens = corpus.encode(text.tokenizer_at(place / TOKENIZER), documents)
    return tokens[: N_TOKENS // length * length].view(-1, length)
