"""Records that hold what no measurement gives are shown as failed, with the reason, and nothing of them is drawn.

A ratio may be undefined, and a first token may not have been timed; a decode step that took no time, or a loss that is
no number, is a fault of the measurement or of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from pipeline.record import Arm, Cost, Quality, Record, TaskQuality, TextQuality


def sound(record: Record) -> Record:
    """The record itself, or, where a number is impossible, one that failed and says which."""
    fault = next(_faults(record), None)
    if fault is None:
        return record
    told = {"reason": f"{fault}, which no measurement gives", "remedy": "delete the record and measure its cell again"}
    return record.model_copy(update={"status": "error", **told, "cost": None, "quality": None, "throughput": None})


def _faults(record: Record) -> Iterator[str]:
    if record.cost:
        yield from _of_cost(record.cost)
    if record.quality:
        yield from _of_quality(record.quality)
    if record.throughput:
        for name in ("engine", "one_by_one", "batch"):
            if serving := getattr(record.throughput, name):
                yield from _impossible(f"throughput.{name}.wall_s", serving.wall_s, _is_duration)
                yield from _impossible(f"throughput.{name}.ttft_s", serving.ttft_s, _is_duration)


def _of_cost(cost: Cost) -> Iterator[str]:
    arms: dict[str, Arm] = {"technique": cost.technique, "full": cost.full, "full_again": cost.full_again}
    for name, arm in arms.items():
        yield from _impossible(f"cost.{name}.tpot_s", arm.tpot_s, _is_duration)
        yield from _impossible(f"cost.{name}.step_s", arm.step_s, _is_duration)
        yield from _impossible(f"cost.{name}.ttft_s", [v for v in arm.ttft_s if not math.isnan(v)], _is_duration)
    for name in ("copy_bandwidth_bytes_per_s", "matmul_flop_per_s", "link_bandwidth_bytes_per_s"):
        rate = getattr(cost, name)
        yield from _impossible(f"cost.{name}", [] if rate is None else [rate], _is_duration)
    for name in ("ttft_ratio", "tpot_ratio"):
        yield from _impossible(f"cost.{name}", [getattr(cost, name).estimate], lambda value: not math.isinf(value))


def _of_quality(quality: Quality) -> Iterator[str]:
    parts: dict[str, TaskQuality | TextQuality] = {f"{task.task}, {task.protocol}": task for task in quality.tasks}
    if quality.text:
        parts["text"] = quality.text
    for name, part in parts.items():
        items = part.items
        scored = [*items.correct, *items.correct_full, *items.nll, *items.nll_full]
        scored += [part.nll, part.nll_full, part.nll_difference.estimate, part.kl_to_full, part.top1_agreement]
        if isinstance(part, TaskQuality):
            scored += [part.accuracy, part.accuracy_full, part.accuracy_difference.estimate]
        yield from _impossible(f"quality of {name}", scored, math.isfinite)


def _impossible(name: str, values: Iterable[float], possible: Callable[[float], bool]) -> Iterator[str]:
    yield from (f"{name} holds {value}" for value in values if not possible(value))


def _is_duration(value: float) -> bool:
    return 0 < value < math.inf
