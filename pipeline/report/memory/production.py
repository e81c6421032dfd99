"""Caches at production scale: what shapes and lengths alone say they take, in tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pipeline.findings import quantities as q
from pipeline.memory.production import Held, Plan, Point, Points, Production, Shape
from pipeline.report.tables import Table

DECIMAL_GB = 10**9


def tables(found: Production) -> list[tuple[str, Table]]:
    """Shapes, each way to hold them, KV heads, scenarios and the stack."""
    plan = found.plan
    return [
        ("Shapes", _shapes(found)),
        *((f"{holding.title}, one sequence", _held(plan, found.shapes, i)) for i, holding in enumerate(plan.holdings)),
        (f"{plan.heads.title} by KV heads, {plan.dtype}, with the largest batch on {_cards(plan, 1)}", _heads(found)),
        (_title(plan.scenarios), _points(plan, found.scenarios)),
        (f"{_title(plan.stack)}, one step after another", _points(plan, found.stack)),
    ]


def sentences(found: Production) -> list[str]:
    return [
        *_all_refusals(found),
        _said_of_heads(found),
        _said_of_scenarios(found),
        _said_of_cards(found),
        _said_of_stack(found),
    ]


def _shapes(found: Production) -> Table:
    batched = found.plan.batched
    at = f"batch {batched.batch} at {q.count(batched.seq_len)} tokens"
    columns = [("Model", "l"), ("Layers", "r"), ("Weights", "r"), ("A token", "r"), ("In a layer", "r")]
    columns += [(f"{holding.title}, {at}", "r") for holding in found.plan.holdings]
    return Table(columns, [_shape(shape) for shape in found.shapes])


def _shape(shape: Shape) -> list[str]:
    per_token = shape.kv_bytes_per_token
    sizes = [q.data(shape.weight_bytes), q.data(per_token), q.data(per_token / shape.n_layers)]
    batched = [q.DASH if held.kept_batched is None else q.data(held.kept_batched) for held in shape.held]
    return [_model(shape), q.count(shape.n_layers), *sizes, *batched]


def _held(plan: Plan, shapes: Sequence[Shape], which: int) -> Table:
    columns = [("Model", "l"), *((f"{q.count(n)} tokens", "r") for n in plan.seq_len)]
    return Table(columns, [[_model(shape), *_lengths(plan, shape.held[which])] for shape in shapes])


def _lengths(plan: Plan, held: Held) -> list[str]:
    return [q.data(kept) for kept in held.kept] or [q.DASH] * len(plan.seq_len)


def _heads(found: Production) -> Table:
    plan = found.plan.heads
    columns = [("KV heads", "r"), ("Weights", "r")]
    columns += [(f"{q.count(n)} tokens: bytes, batch", "r") for n in plan.seq_len]
    rows = [
        [
            q.count(one.n_kv_heads),
            q.data(one.weight_bytes),
            *(f"{q.data(kept)}, {q.count(n)}" for kept, n in zip(one.kept, one.largest_batch, strict=True)),
        ]
        for one in found.heads
    ]
    return Table(columns, rows)


def _points(plan: Plan, points: Sequence[Point]) -> Table:
    columns = [("How", "l"), ("Assumes", "l"), ("KV of one sequence", "r"), ("Share", "r")]
    columns += [(f"Largest batch, {_cards(plan, n)}", "r") for n in (1, plan.n_gpus)]
    columns += [("Options of the calculator", "l")]
    rows = [
        [
            point.title,
            q.free_text(point.assumes),
            q.data(point.kept),
            q.share(point.kept / points[0].kept),
            q.count(point.largest_batch_of_one),
            q.count(point.largest_batch),
            f"`{point.options}`",
        ]
        for point in points
    ]
    return Table(columns, rows)


def _all_refusals(found: Production) -> list[str]:
    """What holds nothing of a model, and why, each reason once."""
    refused: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for i, holding in enumerate(found.plan.holdings):
        shapes = [shape for shape in found.shapes if shape.held[i].refused]
        if shapes:
            reason = shapes[0].held[i].refused
            refused.setdefault((tuple(shape.model for shape in shapes), reason), []).append(holding.title)
    return [
        f"{q.words(titles)} of {q.words(f'`{model}`' for model in models)}: not held, {q.free_text(reason)}."
        for (models, reason), titles in refused.items()
    ]


def _said_of_heads(found: Production) -> str:
    first, *others = found.heads
    longest = found.plan.heads.seq_len[-1]
    said = [
        f"with {q.plural(one.n_kv_heads, 'KV head')} instead of {q.count(first.n_kv_heads)}, "
        f"{q.ratio(one.kept[-1] / first.kept[-1])} the bytes, and on {_cards(found.plan, 1)} "
        f"{q.plural(one.largest_batch[-1], 'sequence')} of {q.count(longest)} tokens instead of "
        f"{q.count(first.largest_batch[-1])}"
        for one in others
    ]
    return f"{found.plan.heads.title}: {'; '.join(said)}."


def _said_of_scenarios(found: Production) -> str:
    points = found.scenarios
    least, most = min(points, key=lambda point: point.kept), max(points, key=lambda point: point.kept)
    return (
        f"{_title(found.plan.scenarios)}: from {q.data(most.kept)} ({_lower(most)}) to {q.data(least.kept)} "
        f"({_lower(least)}), {q.ratio(most.kept / least.kept)} less."
    )


def _said_of_cards(found: Production) -> str:
    """How the weights compare with one device, and what fits beside them on all."""
    plan, points = found.plan, found.scenarios
    weights = min(point.weight_bytes for point in points)
    compared = "more" if weights > plan.gpu_gb * DECIMAL_GB else "no more"
    n_fitting = sum(point.largest_batch > 0 for point in points)
    batches = [point.largest_batch for point in points]
    return (
        f"The weights alone take {q.data(weights)} in {plan.dtype}, {compared} than {_cards(plan, 1)} hold; shared out "
        f"evenly over {_cards(plan, plan.n_gpus)}, {n_fitting} of {len(points)} ways to hold the cache leave room for "
        f"a sequence, and the largest batches are {q.count(min(batches))} to {q.count(max(batches))}."
    )


def _said_of_stack(found: Production) -> str:
    points = found.stack
    steps = [f"{q.data(point.kept)} ({_lower(point)})" for point in points]
    ratios = [q.ratio(a.kept / b.kept) for a, b in pairwise(points)]
    return (
        f"{_title(found.plan.stack)}, stacked: {' → '.join(steps)}; {q.words(ratios)} less by each step, "
        f"{q.ratio(points[0].kept / points[-1].kept)} in all."
    )


def _title(points: Points) -> str:
    return f"{points.title} at {q.count(points.seq_len)} tokens"


def _lower(point: Point) -> str:
    return point.title[0].lower() + point.title[1:]


def _model(shape: Shape) -> str:
    return f"{shape.title.removesuffix(', published shape')} (`{shape.model}`)"


def _cards(plan: Plan, n: int) -> str:
    return f"{plan.gpu_gb:g}{q.GLUE}GB" if n == 1 else f"{n} {q.TIMES} {plan.gpu_gb:g}{q.GLUE}GB"
