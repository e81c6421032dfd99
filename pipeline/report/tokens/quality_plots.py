"""Figures of quality: a line for each technique, those that hold least on top, and one technique task by task."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group, held_share
from pipeline.findings.means import PROTOCOL, answered, mean_difference, shifted
from pipeline.record import Interval, TaskQuality, TextQuality
from pipeline.report.drawing import INK, REFERENCE, ROW_IN, Mark, across, dodge, figure, mark, name_rows

Names = Mapping[tuple[str, str], str]
Measured = TypeVar("Measured", TaskQuality, TextQuality)
AROUND_IN = 1.2
N_LENGTHS = 3  # of one technique, the longest: more would be too narrow to read


def recall(rows: Sequence[Row], names: Names) -> Figure:
    """Mean accuracy over tasks, a panel per protocol; rows are those of one point."""
    shown = _by_bytes([(row, _tasks(row)) for row in rows])
    drawn = figure(AROUND_IN + ROW_IN * len(shown))
    panels = drawn.subplots(1, len(PROTOCOL), sharey=True)
    for axes, (protocol, title) in zip(panels, PROTOCOL.items(), strict=True):
        for height, (row, tasks) in enumerate(shown):
            if value := mean_accuracy(tasks, protocol):
                across(axes, value, height, mark(row.strategy))
        if reached := [task.accuracy_full for _, tasks in shown for task in answered(tasks, protocol)]:
            axes.axvline(statistics.fmean(reached), color=REFERENCE, linewidth=1)
        axes.set_title(f"recall accuracy, {title}")
        axes.set_xlim(-0.04, 1.04)
    _name(panels, shown, names)
    _say(drawn, rows, "mean over tasks")
    return drawn


def text(rows: Sequence[Row], names: Names) -> Figure:
    """Loss on text and how far predictions are from the reference's; rows are those of one point."""
    shown = _by_bytes([(row, [own]) for row in rows if (own := _text(row))])
    drawn = figure(AROUND_IN + ROW_IN * len(shown))
    loss, divergence = drawn.subplots(1, 2, sharey=True)
    for height, (row, (own,)) in enumerate(shown):
        across(loss, own.nll_difference, height, mark(row.strategy))
        kl = Interval(estimate=own.kl_to_full, low=own.kl_to_full, high=own.kl_to_full, n=0)
        across(divergence, kl, height, mark(row.strategy))
    reference = rows[0].setting.reference
    loss.set_title(f"loss on held-out text above {reference}'s, nats")
    divergence.set_title(f"KL divergence from {reference}, nats")
    for axes in (loss, divergence):
        axes.axvline(0, color=REFERENCE, linewidth=1)
    _name((loss, divergence), shown, names)
    _say(drawn, rows, "lower is better")
    return drawn


def mean_accuracy(tasks: Sequence[TaskQuality], protocol: str) -> Interval | None:
    """Over the tasks that count; the interval is that of the difference from the reference."""
    found = answered(tasks, protocol)
    mean = mean_difference(found)
    return mean and shifted(mean, statistics.fmean(task.accuracy_full for task in found))


def _tasks(row: Row) -> list[TaskQuality]:
    return row.record.quality.tasks if row.record.quality else []


def _text(row: Row) -> TextQuality | None:
    return row.record.quality.text if row.record.quality else None


def _by_bytes(found: Sequence[tuple[Row, list[Measured]]]) -> list[tuple[Row, list[Measured]]]:
    return sorted(found, key=lambda pair: held_share(pair[1]) or 0.0)


def _name(
    panels: Sequence[Axes], shown: Sequence[tuple[Row, Sequence[TaskQuality | TextQuality]]], names: Names
) -> None:
    name_rows(panels, [f"{names[row.strategy, row.variant]}  {q.share(held_share(own)):>7}" for row, own in shown])


def _say(drawn: Figure, rows: Sequence[Row], what: str) -> None:
    reference, length = rows[0].setting.reference, q.count(rows[0].cell.seq_len)
    drawn.supxlabel(f"at {length} tokens, {what} (beside the names: bytes held, share of {reference}'s)", fontsize=10)


def technique(rows: Sequence[Row]) -> Figure:
    """Accuracy by task at the longest lengths: filled and open marks for the protocols, a bar for the full cache."""
    tasks = list(dict.fromkeys(t.task for row in rows if row.record.quality for t in row.record.quality.tasks))
    by_length = dict(sorted(group(rows, lambda row: row.cell.seq_len).items())[-N_LENGTHS:])
    drawn = figure(1.5 + 0.42 * len(tasks))
    panels = drawn.subplots(1, len(by_length), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (seq_len, members) in zip(panels, by_length.items(), strict=True):
        for found in members[-1].record.quality.tasks if members[-1].record.quality else []:
            _task_mark(axes, tasks.index(found.task), found, mark(rows[0].strategy))
        axes.set_title(f"{q.count(seq_len)} tokens")
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(tasks)), [q.task(name) for name in tasks])
    panels[0].set_ylim(len(tasks) - 0.5, -0.5)
    drawn.supxlabel("accuracy", fontsize=10)
    _protocol_legend(drawn, mark(rows[0].strategy), rows[0].setting.reference)
    return drawn


def _task_mark(axes: Axes, line: int, found: TaskQuality, own: Mark) -> None:
    protocols = list(PROTOCOL)
    y = line + 0.4 * dodge(protocols.index(found.protocol), len(protocols))
    axes.plot([found.accuracy_full] * 2, [y - 0.16, y + 0.16], color=INK, linewidth=2)
    value = shifted(found.accuracy_difference, found.accuracy_full)
    across(axes, value, y, own, is_open=found.protocol != protocols[0])


def _protocol_legend(drawn: Figure, own: Mark, reference: str) -> None:
    looks = zip(PROTOCOL.values(), (own.color, "white"), strict=True)
    handles = [
        Line2D([], [], color=own.color, marker=own.marker, mfc=fill, linestyle="", label=title) for title, fill in looks
    ]
    handles.append(
        Line2D([], [], color=INK, marker="|", markersize=10, mew=2, linestyle="", label=f"the same with {reference}")
    )
    drawn.legend(handles=handles, loc="outside upper left", ncols=3)
