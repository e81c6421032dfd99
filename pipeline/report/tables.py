"""Records as Markdown tables, small enough to be read without scrolling sideways."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.record import Cost, TaskQuality
from pipeline.report import quantities as q
from pipeline.report import verdicts
from pipeline.report.evidence import Row

STATUS = {"ok": "measured", "error": "failed", "skipped": "skipped"}
PROTOCOL = {"query_aware": "query-aware", "query_agnostic": "query-agnostic"}
Names = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Table:
    """`columns` are (heading, alignment); alignment is `l` or `r`."""

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        rule = ["---:" if align == "r" else ":---" for _, align in self.columns]
        lines = [[heading for heading, _ in self.columns], rule, *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary_cost(rows: Iterable[Row], names: Names, reports_dir: Path) -> Table:
    """All techniques at one length and batch."""
    columns = [("Technique", "l"), ("KV held", "r"), ("Share", "r")]
    columns += [("First token", "r"), ("is", "l"), ("Decode step", "r"), ("is", "l")]
    return Table(
        columns, [[link(row, names[row.strategy, row.variant], reports_dir), *_cost_cells(row)] for row in rows]
    )


def _cost_cells(row: Row) -> list[str]:
    cost = row.record.cost
    if cost is None:
        return [q.DASH] * 3 + [why_empty(row), q.DASH, why_empty(row)]
    return [
        q.data(cost.technique.kv_bytes_held[-1]),
        q.share(row.share),
        q.ratio_interval(cost.ttft_ratio),
        verdicts.speed(cost.ttft_ratio, cost.aa_ttft_ratio),
        q.ratio_interval(cost.tpot_ratio),
        verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio),
    ]


def summary_recall(rows: Sequence[Row], names: Names, reports_dir: Path) -> Table:
    """Accuracy per task, query-aware / query-agnostic, all techniques at one length."""
    tasks = list(dict.fromkeys(t.task for row in rows if row.record.quality for t in row.record.quality.tasks))
    columns = [("Technique", "l"), *((task.replace("_", " "), "r") for task in tasks)]
    return Table(
        columns, [[link(row, names[row.strategy, row.variant], reports_dir), *_accuracies(row, tasks)] for row in rows]
    )


def _accuracies(row: Row, tasks: Iterable[str]) -> list[str]:
    if row.record.quality is None:
        return [why_empty(row) for _ in tasks]
    found: dict[tuple[str, str], str] = {(t.task, t.protocol): q.decimal(t.accuracy) for t in row.record.quality.tasks}
    return [f"{q.GLUE}/{q.GLUE}".join(found.get((task, protocol), q.DASH) for protocol in PROTOCOL) for task in tasks]


def summary_text(rows: Iterable[Row], names: Names, reports_dir: Path) -> Table:
    columns = [("Technique", "l"), ("Share", "r"), ("Loss, nats", "r"), ("Difference", "r"), ("is", "l")]
    columns += [("KL", "r"), ("Top-1 agreement", "r")]
    return Table(
        columns,
        [
            [link(row, names[row.strategy, row.variant], reports_dir), q.share(row.share), *_text_cells(row)]
            for row in rows
        ],
    )


def _text_cells(row: Row) -> list[str]:
    text = row.record.quality.text if row.record.quality else None
    if text is None:
        return [q.DASH, q.DASH, why_empty(row), q.DASH, q.DASH]
    return [
        q.decimal(text.nll, 3),
        q.signed_interval(text.nll_difference, 3),
        verdicts.loss(text.nll_difference),
        q.decimal(text.kl_to_full, 3),
        q.share(text.top1_agreement),
    ]


def why_empty(row: Row) -> str:
    return "not measured" if row.record.status == "ok" else STATUS[row.record.status]


def technique_cost(rows: Sequence[Row], reports_dir: Path) -> Table:
    columns = [("Tokens", "r"), ("Batch", "r"), ("KV held (share)", "r")]
    columns += [("First token", "r"), ("Decode step", "r"), ("Noise", "r"), ("Decode is", "l")]

    def line(row: Row, cost: Cost) -> list[str]:
        held, share, first, _, decode, verdict = _cost_cells(row)
        noise = q.ratio_ends(cost.aa_tpot_ratio)
        return [*where(row, reports_dir), f"{held} ({share})", first, decode, noise, verdict]

    return Table(columns, [line(row, row.record.cost) for row in rows if row.record.cost])


def technique_time(rows: Sequence[Row], reports_dir: Path) -> Table:
    columns = [
        ("Tokens", "r"),
        ("Batch", "r"),
        ("Budget", "r"),
        ("First token p50 / p90", "r"),
        ("Decode step p50 / p90", "r"),
    ]
    columns += [("Floor", "r"), ("Bandwidth", "r"), ("FLOP/s", "r"), ("Tokens/s", "r"), ("Peak memory", "r")]

    def line(row: Row, cost: Cost) -> list[str]:
        arm, predicted = cost.technique, row.record.predicted
        return [
            *where(row, reports_dir),
            _budget(row),
            f"{q.seconds(arm.ttft_s_p50)} / {q.seconds(arm.ttft_s_p90)}",
            f"{q.seconds(arm.tpot_s_p50)} / {q.seconds(arm.tpot_s_p90)}",
            q.seconds(predicted.decode_floor_s) if predicted else q.DASH,
            q.share(cost.decode_bandwidth_share),
            q.share(cost.prefill_flop_share),
            q.decimal(arm.decode_tokens_per_s, 1),
            q.DASH if arm.peak_memory_bytes is None else q.data(arm.peak_memory_bytes),
        ]

    return Table(columns, [line(row, row.record.cost) for row in rows if row.record.cost])


def technique_recall(row: Row, reports_dir: Path) -> Table:
    """Every task and protocol of one record."""
    columns = [("Task", "l"), ("Protocol", "l"), ("Accuracy (reference)", "r"), ("Difference", "r")]
    columns += [("is", "l"), ("Loss difference, nats", "r"), ("KL", "r"), ("Top-1", "r")]

    def line(task: TaskQuality) -> list[str]:
        return [
            link(row, task.task.replace("_", " "), reports_dir),
            PROTOCOL[task.protocol],
            f"{q.decimal(task.accuracy, 3)} ({q.decimal(task.accuracy_full, 3)})",
            q.signed_interval(task.accuracy_difference, 3),
            verdicts.accuracy(task.accuracy_difference),
            q.signed_interval(task.nll_difference),
            q.decimal(task.kl_to_full, 3),
            q.share(task.top1_agreement),
        ]

    return Table(columns, [line(task) for task in row.record.quality.tasks] if row.record.quality else [])


def technique_text(rows: Sequence[Row], reports_dir: Path) -> Table:
    columns = [("Tokens", "r"), ("Context", "r"), ("Scored", "r"), ("Loss (reference), nats", "r")]
    columns += [("Difference", "r"), ("is", "l"), ("KL", "r"), ("Top-1", "r")]
    lines = []
    for row in rows:
        if row.record.quality and (text := row.record.quality.text):
            loss, difference, verdict, kl, top1 = _text_cells(row)
            loss = f"{loss} ({q.decimal(text.nll_full, 3)})"
            counts = [q.count(text.n_context), q.count(text.n_tokens)]
            lines.append([where(row, reports_dir)[0], *counts, loss, difference, verdict, kl, top1])
    return Table(columns, lines)


def where(row: Row, reports_dir: Path) -> list[str]:
    """Length, linked to the record it comes from, and batch."""
    return [link(row, q.count(row.cell.seq_len), reports_dir), q.count(row.cell.batch)]


def link(row: Row, text: str, reports_dir: Path) -> str:
    target = Path(os.path.relpath(row.path, reports_dir)).as_posix().replace(" ", "%20")
    return f"[{text}]({target})"


def _budget(row: Row) -> str:
    return "all" if row.cell.kv_budget is None else q.count(row.cell.kv_budget)
