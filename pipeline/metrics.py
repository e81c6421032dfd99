"""What of a record is followed: one row against `seq_len`, one series against the decode step, and the headlines.

The part of a name before the slash is the section in which W&B draws it; the units are those of the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import mean

from pipeline.judgement import Gate
from pipeline.record import Arm, Cell, Cost, Interval, Quality, Record, TaskQuality, Throughput

Row = dict[str, float | int | str]
# Sections by the start of their name, and the axis that they are drawn against; axes have no chart of their own.
CELL_AXES = dict.fromkeys(("cost", "memory", "quality", "throughput", "cell"), "seq_len") | {"step_": "decode_step"}
TRAINING_AXES = {"loss": "train_step", "recall": "train_step", "schedule": "train_step"}
# What a table of runs shows: of lengths the last, which is the longest; of decode steps nothing; of training the range.
SUMMARY_OVER = {"seq_len": None, "decode_step": "none", "train_step": "min,max,last"}


def place(cell: Cell) -> str:
    return f"t{cell.seq_len}_b{cell.batch}"


def cell_row(record: Record, several_batches: bool = False) -> Row:
    """Cost and quality of a cell; where a grid has several batches each gets sections of its own."""
    of = f"_b{record.cell.batch}" if several_batches else ""
    row: Row = {"seq_len": record.cell.seq_len, f"cell{of}/wall_s": record.wall_s}
    if record.cost:
        row |= _named(f"cost{of}", _times(record.cost)) | _named(f"memory{of}", _bytes(record.cost))
    if record.quality:
        row |= _quality(record.quality, of)
    if record.throughput:
        row |= _named(f"throughput{of}", _throughput(record.throughput))
    return row


def step_rows(record: Record) -> list[Row]:
    """One row for each decode step of a cell, technique beside full cache; step 0 is the prefill."""
    if not record.cost:
        return []
    series = _series(record.cost.technique, "") | _series(record.cost.full, "_full")
    section = f"step_{place(record.cell)}"
    return [
        {"decode_step": step, **_named(section, {name: of[step] for name, of in series.items() if step in of})}
        for step in sorted(set().union(*series.values()))
    ]


def headlines(record: Record) -> Row:
    """What a table of runs should show of a cell: how it ended, and the numbers to compare."""
    row: Row = {"status": record.status}
    if record.status != "ok":
        row |= {"reason": record.reason, "remedy": record.remedy}
    if record.cost:
        row |= {"ttft_ratio": record.cost.ttft_ratio.estimate, "tpot_ratio": record.cost.tpot_ratio.estimate}
        row |= _kv_share(record.cost)
    if record.quality:
        row |= {f"accuracy_{name}": mean(t.accuracy for t in tasks) for name, tasks in _protocols(record.quality)}
    if record.quality and record.quality.text:
        row["text_nll_difference"] = record.quality.text.nll_difference.estimate
    if record.throughput and record.throughput.speedup_batch:
        row["speedup_batch"] = record.throughput.speedup_batch.estimate
    return _named(place(record.cell), row)


def counts(records: Iterable[Record]) -> Row:
    counted = Counter(record.status for record in records)
    return _named("cells", {status: counted[status] for status in ("ok", "error", "skipped")})


def training_row(step: int, point: Mapping[str, float], learning_rate: float) -> Row:
    """One point of the curve of a trainer, at the step counted over all phases; losses in nats."""
    row: Row = {"train_step": step, "schedule/learning_rate": learning_rate, "schedule/seq_len": point["seq_len"]}
    row |= {f"loss/{name}": value for name, value in point.items() if name.endswith("_nll")}
    return row | {f"recall/{name}": value for name, value in point.items() if name.endswith("accuracy")}


def gates(judged: Iterable[Gate]) -> Row:
    return {f"gate/{gate.name}_t{gate.seq_len}": gate.value for gate in judged}


def _times(cost: Cost) -> Row:
    row: Row = {"decode_bandwidth_share": cost.decode_bandwidth_share}
    for of, arm in (("", cost.technique), ("_full", cost.full)):
        row |= {f"ttft_s{of}": arm.ttft_s_p50, f"tpot_s{of}": arm.tpot_s_p50}
        row[f"decode_tokens_per_s{of}"] = arm.decode_tokens_per_s
    return row | _interval("ttft_ratio", cost.ttft_ratio) | _interval("tpot_ratio", cost.tpot_ratio)


def _bytes(cost: Cost) -> Row:
    """After the last step, but for the peak."""
    row: Row = {}
    for of, arm in (("", cost.technique), ("_full", cost.full)):
        row |= {f"kv_bytes_held{of}": arm.kv_bytes_held[-1], f"kv_bytes_logical{of}": arm.kv_bytes_logical}
        if arm.weight_bytes:
            row[f"weight_bytes{of}"] = sum(arm.weight_bytes.values())
        if arm.peak_memory_bytes is not None:
            row[f"peak_memory_bytes{of}"] = arm.peak_memory_bytes
    return row


def _quality(quality: Quality, of: str) -> Row:
    row: Row = {}
    for protocol, tasks in _protocols(quality):
        row |= _named(f"quality_{protocol}{of}", {task.task: task.accuracy for task in tasks})
        row |= _named(f"quality_{protocol}{of}", {f"{task.task}_full": task.accuracy_full for task in tasks})
    if text := quality.text:
        row |= _named(f"quality_text{of}", {"nll": text.nll, "nll_full": text.nll_full})
        row |= _named(f"quality_text{of}", _interval("nll_difference", text.nll_difference))
    return row


def _throughput(measured: Throughput) -> Row:
    """Of the engine and of both baselines; a speed-up is over the baseline that it names.

    Of an arm that served some of the requests only, no first token: the others would have waited for these.
    """
    arms = {"": measured.engine, "_one_by_one": measured.one_by_one, "_batch": measured.batch}
    row: Row = {}
    for of, arm in arms.items():
        if arm:
            row |= {f"tokens_per_s{of}": arm.tokens_per_s, f"tpot_s{of}": arm.tpot_s_p50}
            row |= {f"kv_bytes_allocated{of}": arm.kv_bytes_allocated, f"kv_bytes_used{of}": arm.kv_bytes_used}
            if arm.n_requests in (None, len(measured.n_prompt_tokens)):
                row[f"ttft_s{of}"] = arm.ttft_s_p50
    speedups = {"speedup_one_by_one": measured.speedup_one_by_one, "speedup_batch": measured.speedup_batch}
    for name, speedup in speedups.items():
        row |= _interval(name, speedup) if speedup else {}
    return row


def _protocols(quality: Quality) -> list[tuple[str, list[TaskQuality]]]:
    found = dict.fromkeys(task.protocol for task in quality.tasks)
    return [(protocol, [task for task in quality.tasks if task.protocol == protocol]) for protocol in found]


def _series(arm: Arm, of: str) -> dict[str, dict[int, float]]:
    """Name -> decode step -> value."""
    return {
        f"latency_s{of}": dict(enumerate(arm.step_s, start=1)),
        f"kv_bytes_held{of}": dict(enumerate(arm.kv_bytes_held)),
        f"peak_memory_bytes{of}": {step: float(peak) for step, peak in arm.peak_memory_by_step.items()},
    }


def _kv_share(cost: Cost) -> Row:
    """KV bytes held over the full cache's, after the last step."""
    held, full = cost.technique.kv_bytes_held[-1], cost.full.kv_bytes_held[-1]
    return {"kv_share": held / full} if full else {}


def _interval(name: str, value: Interval) -> Row:
    return {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}


def _named(section: str, values: Mapping[str, float | int | str]) -> Row:
    return {f"{section}/{name}": value for name, value in values.items()}
