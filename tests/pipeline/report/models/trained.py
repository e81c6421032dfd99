"""Records and stories of architectures, made up by rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.record import Cell, Interval, Items, Quality, Record, TaskQuality
from pipeline.report.models.stories import FILE_NAME
from tests.pipeline.report import factory

REFERENCE = "mha"
COST_LENGTHS, QUALITY_LENGTHS = (512, 2048, 8192), (256, 512, 1024)
N_ITEMS = 64
PER_TOKEN = 4096  # bytes of the reference
PHASES = [(32, 1000), (64, 150), (1024, 80)]
Hits = Callable[[float], bool]  # tokens back to the needle -> whether it is found


def cell(model: str, workload: str, seq_len: int) -> Cell:
    return factory.cell("native", seq_len, level="model", model=model, workload=workload, kv_budget=None)


def dressed(made: Record, shape: dict[str, Any], models: Path | None) -> Record:
    own = {"path": str(models / made.cell.model)} if models else {}
    model = made.config["model"] | {"config": shape} | own
    level = {"name": "model", "reference": {"name": REFERENCE}}
    return made.model_copy(update={"config": made.config | {"model": model, "level": level}})


def timed(
    model: str, seq_len: int, n_bytes: int, ratio: float = 0.9, models: Path | None = None, **shape: Any
) -> Record:
    of = cell(model, "growing", seq_len)
    cost = factory.cost(of, ratio)
    own = cost.technique.model_copy(update={"kv_bytes_held": [n_bytes] * of.n_new_tokens})
    full = cost.full.model_copy(update={"kv_bytes_held": [PER_TOKEN * seq_len] * of.n_new_tokens})
    predicted = factory.predicted(of).model_copy(update={"kv_bytes_per_token": n_bytes // seq_len})
    cost = cost.model_copy(update={"technique": own, "full": full})
    return dressed(factory.make(of, 1024, cost=cost, predicted=predicted), shape, models)


def judged(
    model: str, seq_len: int, found: Hits, n_bytes: int = 1 << 20, text: float = 0.0, models: Path | None = None,
    **shape: Any,
) -> Record:  # fmt: skip
    """Where `found` says so an item is answered, out of items at even depths that the reference all answers."""
    of = cell(model, "architecture", seq_len)
    tasks = [_task(name, seq_len, found, n_bytes) for name in factory.TASKS]
    base = factory.quality(0.0)
    assert base.text
    read = base.text.model_copy(update={"nll": 4.5 + text, "nll_difference": factory.interval(text, 0.01 * (text > 0)),
                                        "kv_bytes_held": n_bytes})  # fmt: skip
    quality = Quality(text_source="a text", text_sha256="0" * 64, tasks=tasks, text=read)
    return dressed(factory.make(of, 1024, quality=quality), shape, models)


def _task(name: str, seq_len: int, found: Hits, n_bytes: int) -> TaskQuality:
    depth = [i / (N_ITEMS - 1) for i in range(N_ITEMS)]
    hits = [float(found((1 - share) * (seq_len - 4) + 2)) for share in depth]
    items = Items(
        depth=depth, correct=hits, correct_full=[1.0] * N_ITEMS, nll=[0.1] * N_ITEMS, nll_full=[0.1] * N_ITEMS
    )
    accuracy = sum(hits) / N_ITEMS
    base = factory.task_quality(name, "query_agnostic", 0.0)
    difference = Interval(estimate=accuracy - 1, low=accuracy - 1, high=accuracy - 1, n=N_ITEMS)
    changes = {"items": items, "n_items": N_ITEMS, "accuracy": accuracy, "accuracy_full": 1.0}
    return base.model_copy(update=changes | {"accuracy_difference": difference, "kv_bytes_held": n_bytes})


def skipped(model: str, reason: str, models: Path | None = None) -> list[Record]:
    cells = [cell(model, "architecture", seq_len) for seq_len in QUALITY_LENGTHS]
    made = [factory.make(of, 1024, status="skipped", reason=reason, remedy="train it") for of in cells]
    return [dressed(item, {}, models) for item in made]


def gates(accuracy: float) -> list[dict[str, Any]]:
    recall = {"name": "single_needle", "unit": "accuracy", "seq_len": 512, "bound": 0.95, "n": 200}
    text = {"name": "held_out_text", "unit": "nats under unigram", "seq_len": 256, "bound": 1.0, "n": 200}
    return [recall | {"value": accuracy, "passed": accuracy >= 0.95}, text | {"value": 1.4, "passed": True}]


def tell(models: Path, name: str, **changes: Any) -> None:
    """Write the story of a training; recall formed half-way through the first phase."""
    curve: list[dict[str, float]] = []
    for seq_len, n_steps in PHASES:
        for step in range(20, n_steps + 1, 20):
            point = {"seq_len": seq_len, "step": step, "running_accuracy": min(1.0, 2 * step / n_steps)}
            curve.append(point | ({"text_nll": 6 - step / 100} if seq_len > 32 else {}))
    story = {
        "name": name,
        "outcome": "trained",
        "n_parameters": 336_576,
        "recipe": {"starts_from": None, "formed_accuracy": 0.9},
        "phases": [{"seq_len": t, "n_steps": n, "solved_at_step": n // 2} for t, n in PHASES],
        "milestones": [],
        "gates": gates(0.99),
        "curve": curve,
        "n_tokens": 3_900_000,
        "seed": 0,
        "cpu_s": 390.0,
    } | changes
    (models / name).mkdir(parents=True, exist_ok=True)
    (models / name / FILE_NAME).write_text(json.dumps(story))


def tell_uptrained(models: Path, name: str, before: float, after: float, parent: str = REFERENCE) -> None:
    phases = [{"seq_len": 512, "n_steps": 60, "solved_at_step": 40}] * 2
    milestones = [{"n_steps": n, "gates": gates(v)} for n, v in ((0, before), (60, after), (120, after))]
    curve = [{"seq_len": 512, "step": step, "running_accuracy": 0.5, "text_nll": 4.4} for step in (20, 40, 60)] * 2
    recipe = {"starts_from": {"model": parent}, "formed_accuracy": 0.9}
    tell(models, name, phases=phases, milestones=milestones, curve=curve, recipe=recipe, gates=gates(after))
