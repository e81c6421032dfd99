"""Which tokens a technique keeps after a prompt, by what they are and where they stand: why it recalls what it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline import answers, tasks
from pipeline.answers import BATCH
from pipeline.decoding import Decoder
from pipeline.judgement import Kept
from pipeline.mechanisms import SEED, SEQ_LEN, Lab
from pipeline.quality import PROTOCOLS, Protocol
from pipeline.refusals import CONF
from pipeline.tasks import RecallItems

KINDS = ("asked key", "asked value", "other keys", "other values", "question", "text")
TASK = "multi_key_8"
N_ITEMS = 64
N_DEPTHS = 5
SHARE = 0.25


def measure(lab: Lab) -> list[Kept]:
    """Every scorer of conf/strategy at the same budget, once after the prompt, under both protocols."""
    scorers = sorted(path.stem for path in (CONF / "strategy/scorer").glob("*.yaml"))
    items = tasks.recall_items(TASK, SEQ_LEN, min(N_ITEMS, lab.n_items), SEED, lab.text)
    return [_of(lab, scorer, items, protocol) for protocol in PROTOCOLS for scorer in scorers]


def _of(lab: Lab, scorer: str, items: RecallItems, protocol: Protocol) -> Kept:
    budget = round(SHARE * SEQ_LEN)
    new_decoder = lab.arm(lab.model, "oracle", f"strategy/scorer={scorer}", kv_budget=budget)
    prompt, kept, hits = answers.prompt(items, protocol), [], []
    for prompt_BT, question_BT in zip(prompt.split(BATCH), items.question.split(BATCH), strict=True):
        with new_decoder(question_BT.shape[1]) as decoder:
            answers.fed(decoder, prompt_BT, question_BT)
            kept.append(kept_share(decoder).expand(prompt_BT.shape))
            hits.append(decoder.teacher_force(question_BT))
    share = torch.cat(kept)
    kind = kinds(prompt, items)
    return Kept(
        technique=scorer,
        task=TASK,
        protocol=protocol,
        seq_len=SEQ_LEN,
        kv_budget=budget,
        n_items=len(prompt),
        accuracy=answers.correct(answers.asked(torch.cat(hits), items), items).mean().item(),
        by_kind={name: share[kind == index].mean().item() for index, name in enumerate(KINDS) if (kind == index).any()},
        by_depth=[part.mean().item() for part in share.tensor_split(N_DEPTHS, dim=1)],
    )


def kept_share(decoder: Decoder) -> Tensor:
    """[b, T] in how many of its layers and KV heads each token seen so far is held, as a share; b is 1 or B."""
    layers: list[Any] = decoder.cache.layers  # type: ignore[union-attr]
    shares = []
    for layer in layers:
        position = layer.positions[..., : layer.n_held]  # [b, h, n], b and h 1 where rows or heads share one set
        held = torch.zeros(*position.shape[:2], decoder.n_seen).scatter_(-1, position, 1.0)
        shares.append(held.mean(1))
    return torch.stack(torch.broadcast_tensors(*shares)).mean(0)


def kinds(prompt: Tensor, items: RecallItems) -> Tensor:
    """[N, T] index into KINDS of every token of a prompt."""
    asked_key, asked_value = items.question[:, -1:], items.answer[:, -1:]
    names = {name: index for index, name in enumerate(KINDS)}
    kind = torch.full_like(prompt, names["text"])
    kind[(prompt >= tasks.FIRST_KEY) & (prompt < tasks.FIRST_VALUE)] = names["other keys"]
    kind[(prompt >= tasks.FIRST_VALUE) & (prompt < tasks.ASK)] = names["other values"]
    kind[prompt == asked_key] = names["asked key"]
    kind[prompt == asked_value] = names["asked value"]
    kind[:, items.context.shape[1] :] = names["question"]
    return kind
