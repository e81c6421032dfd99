"""Figures of quality: against the share of bytes held, and per task."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from pipeline.record import Interval, TaskQuality, TextQuality
from pipeline.report import quantities as q
from pipeline.report.drawing import INK, Mark, dodge, error_bars, figure, legend, mark
from pipeline.report.evidence import Row, group, held_share
from pipeline.report.means import answered, mean_difference
from pipeline.report.tables import PROTOCOL

Names = Mapping[tuple[str, str], str]
NEARLY = 0.03  # shares closer than this would lie over each other
SPREAD = 0.1  # which they are moved apart over at most: many together must not look like many shares


def recall(rows: Sequence[Row], names: Names) -> Figure:
    """Mean accuracy over tasks by share of bytes; a column per length, a row per protocol."""
    lengths = sorted({row.cell.seq_len for row in rows})
    drawn = figure(5.4)
    panels = drawn.subplots(len(PROTOCOL), len(lengths), squeeze=False, sharex=True, sharey=True)
    for line, (protocol, title) in zip(panels, PROTOCOL.items(), strict=True):
        for axes, seq_len in zip(line, lengths, strict=True):
            _recall_panel(axes, [row for row in rows if row.cell.seq_len == seq_len], protocol)
            axes.set_title(f"{title}, {q.count(seq_len)} tokens")
            axes.set_ylim(-0.05, 1.05)
        line[0].set_ylabel("mean recall accuracy")
    _finish(drawn, panels[-1], rows, names)
    return drawn


def _recall_panel(axes: Axes, rows: Sequence[Row], protocol: str) -> None:
    measured = {id(row): _tasks(row, protocol) for row in rows}
    shares = [(row, held_share(measured[id(row)])) for row in rows]
    for row, x in _side_by_side(shares):
        tasks = answered(measured[id(row)], protocol)
        if mean := mean_difference(tasks):
            _point(axes, row, x, _moved(mean, statistics.fmean(task.accuracy_full for task in tasks)))


def _tasks(row: Row, protocol: str) -> list[TaskQuality]:
    return [t for t in row.record.quality.tasks if t.protocol == protocol] if row.record.quality else []


def text(rows: Sequence[Row], names: Names) -> Figure:
    """Loss by share of bytes, a column per length; the interval is that of the difference from the full cache."""
    lengths = sorted({row.cell.seq_len for row in rows})
    drawn = figure(3.4)
    panels = drawn.subplots(1, len(lengths), squeeze=False, sharex=True, sharey=True)[0]
    for axes, seq_len in zip(panels, lengths, strict=True):
        shares = [(row, held_share([t])) for row in rows if row.cell.seq_len == seq_len and (t := _text(row))]
        for row, x in _side_by_side(shares):
            if found := _text(row):
                _point(axes, row, x, _moved(found.nll_difference, found.nll_full))
        axes.set_title(f"{q.count(seq_len)} tokens")
    panels[0].set_ylabel("loss on held-out text, nats\n(lower is better)")
    _finish(drawn, panels, rows, names)
    return drawn


def _text(row: Row) -> TextQuality | None:
    return row.record.quality.text if row.record.quality else None


def _side_by_side(shares: Sequence[tuple[Row, float | None]]) -> Iterator[tuple[Row, float]]:
    """Rows with their place on the axis: those that hold nearly the same share stand next to each other."""
    clusters: list[list[tuple[float, int, Row]]] = []
    for place in sorted(
        ((s, i, row) for i, (row, s) in enumerate(shares) if s is not None), key=lambda place: place[:2]
    ):
        if not clusters or place[0] - clusters[-1][-1][0] > NEARLY:
            clusters.append([])
        clusters[-1].append(place)
    for members in clusters:
        centre = statistics.fmean(share for share, _, _ in members)
        step = min(0.035, SPREAD / len(members))
        for index, (share, _, row) in enumerate(sorted(members, key=lambda place: place[1])):
            yield row, share if len(members) == 1 else centre + step * dodge(index, len(members))


def _point(axes: Axes, row: Row, x: float, value: Interval) -> None:
    own = mark(row.strategy)
    bars = error_bars([value])
    axes.errorbar(x, value.estimate, bars, color=own.color, marker=own.marker, mfc=own.fill, markersize=6, capsize=2)


def _moved(difference: Interval, by: float) -> Interval:
    ends = {end: getattr(difference, end) + by for end in ("estimate", "low", "high")}
    return Interval(n=difference.n, **ends)


def _finish(drawn: Figure, bottom: Sequence[Axes], rows: Sequence[Row], names: Names) -> None:
    for axes in bottom:
        axes.set_xlim(-0.08, 1.12)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    drawn.supxlabel(
        f"KV bytes held, share of {rows[0].setting.reference}'s (points side by side: nearly the same share)",
        fontsize=10,
    )
    legend(drawn, [(names[key], mark(key[0])) for key in dict.fromkeys((row.strategy, row.variant) for row in rows)])


def technique(rows: Sequence[Row]) -> Figure:
    """Accuracy by task, a panel per length: filled and open marks for the protocols, a bar for the full cache."""
    tasks = list(dict.fromkeys(t.task for row in rows if row.record.quality for t in row.record.quality.tasks))
    by_length = group(rows, lambda row: row.cell.seq_len)
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
    fill = own.color if found.protocol == protocols[0] else "white"
    axes.plot([found.accuracy_full] * 2, [y - 0.16, y + 0.16], color=INK, linewidth=2)
    value = _moved(found.accuracy_difference, found.accuracy_full)
    bars = error_bars([value])
    axes.errorbar(value.estimate, y, xerr=bars, color=own.color, marker=own.marker, mfc=fill, markersize=6, capsize=2)


def _protocol_legend(drawn: Figure, own: Mark, reference: str) -> None:
    looks = zip(PROTOCOL.values(), (own.color, "white"), strict=True)
    handles = [
        Line2D([], [], color=own.color, marker=own.marker, mfc=fill, linestyle="", label=title) for title, fill in looks
    ]
    handles.append(
        Line2D([], [], color=INK, marker="|", markersize=10, mew=2, linestyle="", label=f"the same with {reference}")
    )
    drawn.legend(handles=handles, loc="outside upper left", ncols=3)
