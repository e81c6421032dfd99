"""Figures of the benchmark page: decode steps beside their bars, and steps against the tokens seen before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline import bars
from pipeline.bars import MISSED, Judged
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group, label
from pipeline.record import Interval
from pipeline.report.drawing import (
    INK,
    REFERENCE,
    ROW_IN,
    bound,
    dodge,
    error_bars,
    figure,
    label_ends,
    mark,
    name_rows,
)
from pipeline.report.scales import length_axis, log_axis, ratio_axis

Lengths = Sequence[tuple[int, Interval]]
SHORTEST_IN = 3.4


def decode(judged: Sequence[Judged]) -> Figure:
    """One line per technique: what it took, as a ratio to the reference, and the bar."""
    drawn = figure(1.4 + 0.3 * len(judged))
    axes = drawn.subplots()
    for place, line in enumerate(judged):
        _beside_its_bar(axes, place, line)
    axes.axvline(1, color=REFERENCE, linewidth=1)
    axes.set_yticks(range(len(judged)), [label(line.strategy) for line in judged])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    ratio_axis(axes, "x", [1.0, *(value for line in judged for value in (line.measured.estimate, line.at_most))])
    axes.set_xlabel("decode step as a ratio to DynamicCache's, with 95 % interval (bar: |, missed: open)")
    return drawn


def _beside_its_bar(axes: Axes, place: int, line: Judged) -> None:
    shown = mark(line.strategy)
    missed = line.verdict.startswith(MISSED)
    axes.errorbar(
        line.measured.estimate, place, xerr=[[end[0]] for end in error_bars([line.measured])], linestyle="",
        color=shown.color, marker=shown.marker, markerfacecolor="white" if missed else shown.color,
    )  # fmt: skip
    axes.plot(line.at_most, place, color=INK, marker="|", markersize=16, markeredgewidth=2)


def seen(rows: Sequence[Row]) -> Figure:
    """A line per technique: its step over its own step after the fewest tokens."""
    strategies = group(rows, lambda row: row.strategy)
    drawn = figure(max(SHORTEST_IN, 0.9 + 0.26 * len(strategies)))
    axes = drawn.subplots()
    ends = []
    for place, (name, members) in enumerate(strategies.items()):
        members = sorted(members, key=lambda row: row.cell.seq_len)
        ratios = [_ratio(row) for row in members]
        shift = 2 ** (dodge(place, len(strategies)) / 40)
        lengths = [row.cell.seq_len * shift for row in members]
        shown = mark(name)
        axes.errorbar(lengths, [ratio.estimate for ratio in ratios], yerr=error_bars(ratios), color=shown.color,
                      marker=shown.marker, linewidth=1)  # fmt: skip
        ends.append((lengths[-1], ratios[-1].estimate, label(name), shown.color))
    axes.axhline(1, color=INK, linewidth=0.8)
    length_axis(axes, [row.cell.seq_len for row in rows])
    axes.set_xlabel("tokens seen before the step")
    axes.set_ylabel("step, ratio to the first")
    ratio_axis(axes, "y", [1.0, *(end for row in rows for end in (_ratio(row).low, _ratio(row).high))])
    label_ends(drawn, axes, ends)
    return drawn


def _ratio(row: Row) -> Interval:
    assert row.record.cost, "only timed rows are drawn here"
    return row.record.cost.tpot_ratio


def steps(rows: Sequence[Row]) -> Figure:
    """A line per technique, the fastest on top: its step as a graph (filled) and launched from Python (open)."""
    found = ((row, row.record.cost) for row in rows if row.record.cost)
    timed = sorted(found, key=lambda one: one[1].technique.tpot_s_p50)
    drawn = figure(1.3 + ROW_IN * len(timed))
    axes = drawn.subplots()
    seconds = []
    for height, (row, cost) in enumerate(timed):
        own = mark(row.strategy)
        step_s, launched_s = cost.technique.tpot_s_p50, cost.technique.launched_step_s_p50 or cost.technique.tpot_s_p50
        axes.plot([step_s, launched_s], [height] * 2, color=own.color, linewidth=0.8, alpha=0.5)
        axes.plot(step_s, height, color=own.color, marker=own.marker, markersize=6)
        axes.plot(launched_s, height, color=own.color, marker=own.marker, markersize=6, mfc="white")
        seconds += [step_s, launched_s]
        if floor_s := row.step_floor_s:
            bound(axes, floor_s, height)
            seconds.append(floor_s)
    stock = timed[0][1].full
    axes.axvline(stock.tpot_s_p50, color=REFERENCE, linewidth=1)
    axes.annotate(timed[0][0].setting.reference, (stock.tpot_s_p50, 1), (3, 2), xycoords=("data", "axes fraction"),
                  textcoords="offset points", fontsize=8, color=REFERENCE)  # fmt: skip
    name_rows([axes], [label(row.strategy) for row, _ in timed])
    log_axis(axes, "x", [*seconds, stock.tpot_s_p50], FuncFormatter(lambda value, _: q.tick(q.seconds(value))))
    axes.set_xlabel("decode step as one graph (filled), launched from Python (open), and its floor (|)")
    return drawn


def break_even(ratios: Mapping[str, Lengths], labels: Mapping[str, str]) -> Figure:
    """A line per technique: its ratio at each length, filled where it pays; bold from where it pays on."""
    drawn = figure(1.1 + 0.31 * len(ratios))
    axes = drawn.subplots()
    for height, (name, found) in enumerate(ratios.items()):
        own, from_here = mark(name), bars.break_even(found)
        for length, ratio in found:
            fill = own.color if ratio.high < 1 else "white"
            axes.plot(length, height, color=own.color, marker=own.marker, mfc=fill, markersize=6, zorder=3)
            axes.annotate(q.ratio(ratio.estimate), (length, height), (0, 5), textcoords="offset points", ha="center",
                          fontsize=8, color=INK)  # fmt: skip
        if from_here:
            axes.plot([from_here, max(n for n, _ in found)], [height] * 2, color=own.color, linewidth=2.5, alpha=0.5)
    length_axis(axes, [length for found in ratios.values() for length, _ in found])
    axes.margins(x=0.1)
    name_rows([axes], [labels[name] for name in ratios])
    axes.set_xlabel("prompt tokens (filled: faster than our full cache, interval and all; bold: from there on)")
    return drawn
