"""What techniques keep of a sequence, as their caches say themselves, on shapes of a few layers that stand for all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from hydra.utils import instantiate
from transformers import PreTrainedModel

from pipeline import calibration, models
from pipeline.decoding import Decoder
from pipeline.memory.question import Question, asked
from pipeline.refusals import CONF
from pipeline.serving.plan import Plan
from pipeline.serving.results import Size

NAMES = sorted(file.stem for file in (CONF / "strategy").glob("*.yaml"))


def sizes(plan: Plan, names: Iterable[str] = NAMES) -> dict[str, Size | str]:
    """By technique; the reason where it has none. Caches of other packages, which take no axes, are left out."""
    questions = {name: _question(plan, name) for name in names}
    n_layers = models.shape(plan.model).num_hidden_layers
    with models.quiet():
        first = next(iter(questions.values()))
        model = models.outlined(first.configured(), plan.dtype)
        return {
            name: _size_or_reason(question, model, n_layers / model.config.num_hidden_layers)
            for name, question in questions.items()
            if question.strategy.scorer is not None
        }


def _question(plan: Plan, name: str) -> Question:
    question = asked([f"strategy={name}", f"dtype={plan.dtype}", f"seq_len={plan.techniques.seq_len}"])
    config = {**(plan.model.config or {}), "num_hidden_layers": plan.techniques.n_layers}
    return question.model_copy(update={"model": plan.model.model_copy(update={"config": config})})


def _size_or_reason(question: Question, model: PreTrainedModel, scale: float) -> Size | str:
    if question.offloads:
        return "its tokens lie on the host, whose memory is not limited here"
    try:
        return _size(question, model, scale)
    except (
        ImportError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        AttributeError,
        LookupError,
        ValueError,
    ) as error:
        return " ".join(str(error).split())


def _size(question: Question, model: PreTrainedModel, scale: float) -> Size:
    """A straight line through both lengths: bytes for each kept token, and those that every sequence takes besides.

    `scale`: layers of the whole model for each of `model`'s.
    """
    short, long = question.seq_len
    n_short, n_long = (question.budget_at(seq_len) or seq_len for seq_len in (short, long))
    if n_short == n_long:
        raise ValueError(f"it keeps {n_short} tokens of any prompt")
    (kept_short, grown), (kept_long, _) = (_kept_bytes(question, model, seq_len) for seq_len in (short, long))
    slot_bytes = (kept_long - kept_short) / (n_long - n_short)
    return Size(
        slot_bytes=scale * slot_bytes,
        fixed=max(0, round(kept_short / slot_bytes) - n_short),
        keeps=question.strategy.keep_ratio or 1.0,
        grows=grown > kept_short,
    )


def _kept_bytes(question: Question, model: PreTrainedModel, seq_len: int) -> tuple[int, int]:
    """When the prompt is in, and one token later."""
    build = instantiate(question.strategy.cache)
    calibration.ensure(build, model, question.model.model_copy(update={"source": "random"}))
    ids_1T = torch.zeros(1, seq_len + 1, dtype=torch.long, device="meta")
    cache = build(model=model, kv_budget=question.budget_at(seq_len), headroom=question.n_new_tokens)
    if cache is None:
        raise ValueError("it holds nothing, and computes all of the sequence again in every step")
    with Decoder(model, cache) as decoder:
        decoder.foresee(ids_1T, seq_len)
        decoder.feed(ids_1T[:, :seq_len])
        kept = decoder.kv_bytes_logical
        decoder.feed(ids_1T[:, seq_len:])
        return kept, decoder.kv_bytes_logical
