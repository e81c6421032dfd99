"""The ablations of one setting: quality against bytes, then one axis at a time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, label
from pipeline.findings.means import PROTOCOL, STRICTER, accuracies, tasks_of
from pipeline.report import captions
from pipeline.report.ablations import axes, axis_plots, equal_bytes
from pipeline.report.ablations import budget_plots as ablation_plots
from pipeline.report.drawing import style
from pipeline.report.tables import Table, held_cells, link

MANY = 12  # lines of a table that may stand unfolded


@dataclass(frozen=True)
class Ablation:
    """A heading and what belongs below it; `drawn` has file name, alternative text and figure."""

    title: str
    sentences: list[str]
    tables: list[tuple[str, Table]]
    details: list[tuple[str, Table]]
    drawn: list[tuple[str, str, Figure]]


def ablations(rows: Sequence[Row], reports_dir: Path) -> list[Ablation]:
    judged = [row for row in rows if row.record.quality and row.in_trained_length]
    if not judged:
        return []
    return [against_bytes(judged, reports_dir), *along_axes(judged, reports_dir)]


def against_bytes(rows: Sequence[Row], reports_dir: Path) -> Ablation:
    found = equal_bytes.standings(rows)
    return Ablation(
        "Quality against bytes held",
        [equal_bytes.how(), *map(equal_bytes.sentence, found)],
        [("Recall at equal bytes; bold: no difference from the best found", equal_bytes.table(found))] if found else [],
        [("Every point as it was measured", points(rows, reports_dir))],
        list(_drawn(rows)) if equal_bytes.compared(rows) else [],
    )


def _drawn(rows: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    with style():
        yield "recall", f"recall by share of bytes held, {_recalled(rows)}", ablation_plots.recall(rows)
        yield "text", f"loss and divergence on text by share of bytes held, {_read(rows)}", ablation_plots.text(rows)


def _recalled(rows: Sequence[Row]) -> str:
    found = {
        f"{label(row.strategy)} at {row.variant or 'all'}": statistics.fmean(accuracies(tasks))
        for row in equal_bytes.compared(rows)
        if (tasks := tasks_of(row, STRICTER))
    }
    return f"{PROTOCOL[STRICTER]} {captions.span(found, q.decimal)}"


def _read(rows: Sequence[Row]) -> str:
    found = {
        f"{label(row.strategy)} at {row.variant or 'all'}": row.record.quality.text.nll_difference.estimate
        for row in equal_bytes.compared(rows)
        if row.record.quality and row.record.quality.text
    }
    return captions.span(found, lambda value: f"{q.signed(value, 3)} nats")


def points(rows: Sequence[Row], reports_dir: Path) -> Table:
    columns = [("Technique", "l"), ("Budget", "r"), ("KV held", "r"), ("Share", "r"), ("Recall, query-agnostic", "r")]
    columns += [("KL of answers, nats", "r"), ("Recall, query-aware", "r"), ("Text loss, nats", "r"), ("KL, nats", "r")]
    return Table(columns, [_point(row, reports_dir) for row in rows])


def _point(row: Row, reports_dir: Path) -> list[str]:
    aware, agnostic = (tasks_of(row, protocol) for protocol in PROTOCOL)
    text = row.record.quality.text if row.record.quality else None
    return [
        link(row, label(row.strategy), reports_dir),
        row.variant or "all",
        *held_cells(agnostic),
        q.decimal(statistics.fmean(accuracies(agnostic))) if agnostic else q.DASH,
        q.decimal(statistics.fmean(task.kl_to_full for task in agnostic)) if agnostic else q.DASH,
        q.decimal(statistics.fmean(accuracies(aware))) if aware else q.DASH,
        q.signed_interval(text.nll_difference, 3) if text else q.DASH,
        q.decimal(text.kl_to_full, 3) if text else q.DASH,
    ]


def along_axes(rows: Sequence[Row], reports_dir: Path) -> list[Ablation]:
    found = []
    for axis, groups in axes.varied(rows).items():
        compared = axes.compare(groups)
        table = axes.table(groups, compared, reports_dir)
        heading = "First what the default reached, then differences from it"
        shown, hidden = ([(heading, table)], []) if len(table.rows) <= MANY else ([], [(heading, table)])
        title = f"{q.task(axis).capitalize()}, all else equal"
        with style():
            drawn = axis_plots.drawn(groups, compared)
        found.append(Ablation(title, axes.sentences(groups, compared), shown, hidden, drawn))
    return found
