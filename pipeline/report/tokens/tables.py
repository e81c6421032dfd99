"""Tables of techniques beside the full cache: all at one point, or one at all of its points."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row
from pipeline.findings.means import PROTOCOL, answered, mean_difference, recall_gain
from pipeline.record import Arm, Cost, Interval, TaskQuality
from pipeline.report.tables import Table, held_cells, link, where, why_empty

Names = Mapping[tuple[str, str], str]


def summary_cost(rows: Sequence[Row], names: Names, reports_dir: Path | None = None) -> Table:
    """All techniques at one length and batch, linked to their records where `reports_dir` is given.

    First tokens that were all timed once have no verdict, which is said beside the table instead of in every line.
    """
    once = timed_once(rows)
    columns = [("Technique", "l"), ("KV held", "r"), ("Share", "r"), *_timing_columns(once)]
    lines = [[_technique(row, names, reports_dir), *_held(row), *_timing(row, once)] for row in rows]
    return Table(columns, lines)


def timed_once(rows: Iterable[Row]) -> bool:
    """Whether all first tokens were timed in a single trial."""
    costs = [row.record.cost for row in rows if row.record.cost]
    words = {verdicts.speed(cost.ttft_ratio, cost.aa_ttft_ratio) for cost in costs}
    return words == {verdicts.ONE_SAMPLE}


def _technique(row: Row, names: Names, reports_dir: Path | None) -> str:
    """The full cache has a line as well: what it differs from itself by."""
    again = ", once more" if row.strategy == row.setting.baseline else ""
    name = names[row.strategy, row.variant] + again
    return link(row, name, reports_dir) if reports_dir else name


def _timing_columns(once: bool) -> list[tuple[str, str]]:
    """`once`: the first token has its ratio alone."""
    verdict = [("Noise", "r"), ("is", "l")]
    return [("First token", "r"), *([] if once else verdict), ("Decode step", "r"), *verdict]


def _timing(row: Row, once: bool) -> list[str]:
    ratio, *verdict = _first_token(row)
    return [ratio, *([] if once else verdict), *_step(row)]


def _held(row: Row) -> list[str]:
    cost = row.record.cost
    return [q.data(cost.technique.kv_bytes_held[-1]), q.share(row.share)] if cost else [q.DASH] * 2


def _first_token(row: Row) -> list[str]:
    cost = row.record.cost
    return _beside_noise(cost.ttft_ratio, cost.aa_ttft_ratio) if cost else [q.DASH, q.DASH, why_empty(row)]


def _step(row: Row) -> list[str]:
    cost = row.record.cost
    return _beside_noise(cost.tpot_ratio, cost.aa_tpot_ratio) if cost else [q.DASH, q.DASH, why_empty(row)]


def _beside_noise(ratio: Interval, noise: Interval | None) -> list[str]:
    """The word is by both: equal ratios may have different ones."""
    return [q.ratio_interval(ratio), q.ratio_ends(noise) if noise else q.DASH, verdicts.speed(ratio, noise)]


def summary_quality(rows: Iterable[Row], names: Names) -> Table:
    """All techniques at one length: recall under both protocols, mean over tasks, and text."""
    columns = [("Technique", "l"), ("KV held", "r"), ("Share", "r")]
    columns += [("Recall, query-agnostic", "r"), ("is", "l"), ("Recall, query-aware", "r")]
    columns += [("Text loss, nats", "r"), ("is", "l")]
    return Table(columns, [[_technique(row, names, None), *_quality_cells(row)] for row in rows])


def _quality_cells(row: Row) -> list[str]:
    quality = row.record.quality
    if quality is None:
        return [q.DASH] * 3 + [why_empty(row), q.DASH, q.DASH, why_empty(row)]
    gain, text = recall_gain(row), quality.text
    return [
        *held_cells(quality.tasks or ([text] if text else [])),
        _mean_accuracy(quality.tasks, "query_agnostic"),
        verdicts.accuracy(gain) if gain else q.DASH,
        _mean_accuracy(quality.tasks, "query_aware"),
        f"{q.decimal(text.nll)} ({q.signed(text.nll_difference.estimate)})" if text else q.DASH,
        verdicts.loss(text.nll_difference) if text else q.DASH,
    ]


def _mean_accuracy(tasks: Iterable[TaskQuality], protocol: str) -> str:
    found = answered(tasks, protocol)
    mean = mean_difference(found)
    accuracy = statistics.fmean(task.accuracy for task in found) if found else 0.0
    return f"{q.decimal(accuracy)} ({q.signed(mean.estimate)})" if mean else q.DASH


def summary_recall(rows: Sequence[Row], names: Names, reports_dir: Path) -> Table:
    """Accuracy per task, query-aware / query-agnostic, all techniques at one length."""
    tasks = list(dict.fromkeys(t.task for row in rows if row.record.quality for t in row.record.quality.tasks))
    columns = [("Technique", "l"), ("Share", "r"), *((q.task(name), "r") for name in tasks)]
    return Table(columns, [[_technique(row, names, reports_dir), *_accuracies(row, tasks)] for row in rows])


def _accuracies(row: Row, tasks: Iterable[str]) -> list[str]:
    quality = row.record.quality
    if quality is None:
        return [q.DASH, *(why_empty(row) for _ in tasks)]
    found: dict[tuple[str, str], str] = {(t.task, t.protocol): q.decimal(t.accuracy) for t in quality.tasks}
    both = ("/".join(found.get((task, protocol), q.DASH) for protocol in PROTOCOL) for task in tasks)
    return [held_cells(quality.tasks)[1], *both]


def summary_text(rows: Iterable[Row], names: Names, reports_dir: Path) -> Table:
    columns = [("Technique", "l"), ("KV held", "r"), ("Share", "r"), ("Loss, nats", "r"), ("Difference", "r")]
    columns += [("is", "l"), ("KL, nats", "r"), ("Top-1", "r")]
    return Table(columns, [[_technique(row, names, reports_dir), *_text_cells(row)] for row in rows])


def _text_cells(row: Row) -> list[str]:
    text = row.record.quality.text if row.record.quality else None
    if text is None:
        return [q.DASH] * 4 + [why_empty(row), q.DASH, q.DASH]
    return [
        *held_cells([text]),
        q.decimal(text.nll, 3),
        q.signed_interval(text.nll_difference, 3),
        verdicts.loss(text.nll_difference),
        q.decimal(text.kl_to_full, 3),
        q.share(text.top1_agreement),
    ]


def technique_cost(rows: Sequence[Row], reports_dir: Path) -> Table:
    once, timed = timed_once(rows), [row for row in rows if row.record.cost]
    columns = [("Tokens", "r"), ("Batch", "r"), ("KV held", "r"), ("Share", "r"), *_timing_columns(once)]
    return Table(columns, [[*where(row, reports_dir), *_held(row), *_timing(row, once)] for row in timed])


def technique_time(rows: Iterable[Row]) -> Table:
    columns = [("Tokens", "r"), ("Batch", "r"), ("First token p50 / p90", "r"), ("Decode step p50 / p90", "r")]
    columns += [("Tokens/s", "r"), ("Budget", "r"), ("Peak memory", "r")]

    def line(row: Row, arm: Arm) -> list[str]:
        return [
            q.count(row.cell.seq_len),
            q.count(row.cell.batch),
            _middle_and_tail(arm.ttft_s, arm.ttft_s_p50, arm.ttft_s_p90),
            _middle_and_tail(arm.tpot_s, arm.tpot_s_p50, arm.tpot_s_p90),
            q.three(arm.decode_tokens_per_s),
            "all" if row.cell.kv_budget is None else q.count(row.cell.kv_budget),
            q.DASH if arm.peak_memory_bytes is None else q.data(arm.peak_memory_bytes),
        ]

    return Table(columns, [line(row, row.record.cost.technique) for row in rows if row.record.cost])


def _middle_and_tail(samples: Sequence[float], p50: float, p90: float) -> str:
    return f"{q.seconds(p50)} / {q.seconds(p90)}" if len(samples) > 1 else f"{q.seconds(p50)} / {q.DASH}"


def technique_ceilings(rows: Iterable[Row]) -> Table:
    """Measured against what shapes and the measured machine predict."""
    columns = [("Tokens", "r"), ("Batch", "r"), ("Decode step", "r"), ("Its floor", "r"), ("Bandwidth reached", "r")]
    columns += [("First token", "r"), ("Its floor", "r"), ("FLOP/s reached", "r")]

    def line(row: Row, cost: Cost) -> list[str]:
        predicted = row.record.predicted
        return [
            q.count(row.cell.seq_len),
            q.count(row.cell.batch),
            q.seconds(cost.technique.tpot_s_p50),
            q.DASH if row.step_floor_s is None else q.seconds(row.step_floor_s),
            q.share(cost.decode_bandwidth_share),
            q.seconds(cost.technique.ttft_s_p50),
            q.seconds(predicted.prefill_floor_s) if predicted else q.DASH,
            q.share(cost.prefill_flop_share),
        ]

    return Table(columns, [line(row, row.record.cost) for row in rows if row.record.cost])


def technique_recall(row: Row) -> Table:
    """Every task and protocol of one record."""
    columns = [("Task", "l"), ("Protocol", "l"), ("Accuracy (reference)", "r"), ("Difference", "r")]
    columns += [("is", "l"), ("Loss difference, nats", "r"), ("KL, nats", "r"), ("Top-1", "r")]

    def line(task: TaskQuality) -> list[str]:
        return [
            q.task(task.task),
            PROTOCOL[task.protocol],
            f"{q.decimal(task.accuracy)} ({q.decimal(task.accuracy_full)})",
            q.signed_interval(task.accuracy_difference),
            verdicts.recall(task),
            q.signed_interval(task.nll_difference),
            q.decimal(task.kl_to_full),
            q.share(task.top1_agreement),
        ]

    return Table(columns, [line(task) for task in row.record.quality.tasks] if row.record.quality else [])


def technique_text(rows: Sequence[Row], reports_dir: Path) -> Table:
    columns = [("Tokens", "r"), ("Scored", "r"), ("KV held", "r"), ("Share", "r"), ("Loss (reference), nats", "r")]
    columns += [("Difference", "r"), ("is", "l"), ("KL, nats", "r"), ("Top-1", "r")]
    lines = []
    for row in rows:
        if row.record.quality and (text := row.record.quality.text):
            held, share, loss, *others = _text_cells(row)
            loss = f"{loss} ({q.decimal(text.nll_full, 3)})"
            lines.append([where(row, reports_dir)[0], q.count(text.n_tokens), held, share, loss, *others])
    return Table(columns, lines)
