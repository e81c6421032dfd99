"""The answers to conf/production.yaml, written to results/memory.json: shapes alone, nothing is measured.

python -m pipeline.memory.tables
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from pipeline import ROOT, models, record
from pipeline.memory import production
from pipeline.memory.calculator import Answer, calculate
from pipeline.memory.costs import kv_bytes_per_token, weight_bytes
from pipeline.memory.production import Asked, HeadCount, Heads, Held, Holding, Plan, Point, Points, Production, Shape
from pipeline.memory.question import Question, asked
from pipeline.refusals import COMPOSING, refusals


def computed(plan: Plan) -> Production:
    """Raises ValueError, or Hydra's own errors, for options that cannot be."""
    return Production(
        plan=plan,
        shapes=[_shape(plan, name) for name in plan.models],
        heads=[_head_count(plan, plan.heads, n) for n in plan.heads.n_kv_heads],
        scenarios=_points(plan, plan.scenarios),
        stack=_points(plan, plan.stack),
    )


def answers_by_one_layer(question: Question) -> list[Answer]:
    """As `calculate` gives, for a model and a technique under which all layers hold alike: one is counted."""
    one = {**(question.model.config or {}), "num_hidden_layers": 1}
    single = question.model_copy(update={"model": question.model.model_copy(update={"config": one})})
    n_layers = question.configured().num_hidden_layers
    return [answer.of_layers(n_layers) for answer in calculate(single).answers]


def _ask(plan: Plan, options: str, seq_len: Sequence[int], *more: str) -> Question:
    lengths = ",".join(map(str, seq_len))
    given = [f"seq_len=[{lengths}]", f"dtype={plan.dtype}", f"gpu_gb={plan.gpu_gb}"]
    return asked([*shlex.split(options), *more, *given, f"n_new_tokens={plan.n_new_tokens}"])


def _outline(question: Question) -> PreTrainedModel:
    with models.quiet():
        return models.outlined(question.configured(), question.dtype)


def _shape(plan: Plan, name: str) -> Shape:
    question = _ask(plan, f"model={name}", [1])
    model = _outline(question)
    return Shape(
        model=name,
        title=question.model.title,
        n_layers=model.config.num_hidden_layers,
        weight_bytes=weight_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model.config, model.dtype),
        held=[_held(plan, name, holding) for holding in plan.holdings],
    )


def _held(plan: Plan, name: str, holding: Holding) -> Held:
    """A technique that cannot hold what this architecture keeps says so."""
    question = _ask(plan, f"model={name} {holding.options}", [*plan.seq_len, plan.batched.seq_len])
    try:
        *answers, batched = answers_by_one_layer(question)
    except ValueError as error:
        return Held(title=holding.title, kept=[], kept_batched=None, refused=str(error))
    return Held(
        title=holding.title,
        kept=[answer.one.kept for answer in answers],
        kept_batched=batched.of_batch(plan.batched.batch).kept,
        refused="",
    )


def _head_count(plan: Plan, heads: Heads, n_kv_heads: int) -> HeadCount:
    question = _ask(plan, heads.options, heads.seq_len, f"model.config.num_key_value_heads={n_kv_heads}")
    weights, answers = weight_bytes(_outline(question)), answers_by_one_layer(question)
    return HeadCount(
        n_kv_heads=n_kv_heads,
        weight_bytes=weights,
        kept=[answer.one.kept for answer in answers],
        largest_batch=[answer.largest_batch(question.gpu_bytes - weights) or 0 for answer in answers],
    )


def _points(plan: Plan, points: Points) -> list[Point]:
    return [_point(plan, points.seq_len, point) for point in points.points]


def _point(plan: Plan, seq_len: int, point: Asked) -> Point:
    question = _ask(plan, point.options, [seq_len])
    weights, (answer,) = weight_bytes(_outline(question)), answers_by_one_layer(question)

    def most(n_gpus: int) -> int:
        return answer.largest_batch(n_gpus * question.gpu_bytes - weights) or 0

    return Point(
        **point.model_dump(),
        kept=answer.one.kept,
        held=answer.one.held,
        weight_bytes=weights,
        largest_batch=most(plan.n_gpus),
        largest_batch_of_one=most(1),
    )


def main(arguments: Sequence[str]) -> None:
    assert __doc__
    parser = argparse.ArgumentParser("pipeline.memory.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results")
    path = parser.parse_args(arguments).results_dir / production.FILE
    with refusals((*COMPOSING, ValueError), "memory"):
        record.write(computed(production.plan()), path)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
