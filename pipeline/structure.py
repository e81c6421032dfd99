"""What must show on planted structure (see `pipeline.planted`): the reason why a technique was invented."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import answers, mechanisms, planted, quality, tasks
from pipeline.mechanisms import Lab, gate

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.judgement import Gate

OUTLIER_SCALE, OUTLIER_PAIR = 16.0, 15
N_STREAMS, N_SCORED = 40, 256
SHARE = 0.25


def judge(lab: Lab) -> list[Gate]:
    return [*outliers(lab), *sinks(lab)]


def outliers(lab: Lab) -> list[Gate]:
    """Where a few channels of the keys are large, one scale for a whole token loses to one scale for each channel."""
    model, items = planted.outlier_key_channels(lab.model, OUTLIER_SCALE, OUTLIER_PAIR), lab.among_others
    full, per_token, per_channel = (
        answers.replies(lab.arm(model, technique), items, "query_agnostic") for technique in ("full", "kv_int4", "kivi")
    )
    lost = answers.divergence(per_token, full) - answers.divergence(per_channel, full)
    recalled = answers.correct(per_channel, items) - answers.correct(per_token, items)
    where = "4-bit keys with outlier channels"
    return [
        gate(f"{where}, KL of per token over per channel", lost, "wholly above", 0.0, "nats"),
        gate(f"{where}, per channel over per token", recalled, "wholly above", 0.0),
    ]


def sinks(lab: Lab) -> list[Gate]:
    """Where attention rests on the first token, a bare window loses the text that sinks and a window keep."""
    model = planted.attention_sink(lab.model, tasks.WORD)
    budget = round(SHARE * mechanisms.SEQ_LEN)
    window, kept = (
        _stream_loss(lab, quality.Arms(lab.arm(model, technique, kv_budget=budget), lab.arm(model, "full")))
        for technique in ("sliding_window", "attention_sink")
    )
    return [gate("window over sinks and window, a model with a sink", window - kept, "wholly above", 0.0, "nats")]


def _stream_loss(lab: Lab, arms: quality.Arms) -> Tensor:
    """[streams] nats per token of held-out text behind the sink, token by token."""
    import torch

    streams = quality.text_streams(lab.text, mechanisms.SEQ_LEN, N_STREAMS, N_SCORED)
    streams = torch.cat([torch.full_like(streams[:, :1], tasks.WORD), streams[:, 1:]], dim=1)
    resampling = quality.Resampling(mechanisms.N_BOOTSTRAP, mechanisms.SEED)
    return torch.tensor(quality.streaming_text(arms, streams, N_SCORED, resampling).items.nll, dtype=torch.float64)
