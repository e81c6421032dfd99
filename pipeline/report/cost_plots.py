"""Figures of time and bytes against length, and of time against its predicted floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.record import Cost, Interval
from pipeline.report import quantities as q
from pipeline.report import step_plots
from pipeline.report.drawing import (
    INK,
    NOISE,
    bytes_axis,
    dodge,
    error_bars,
    figure,
    label_ends,
    length_axis,
    mark,
    ratio_axis,
)
from pipeline.report.evidence import Row, group

Names = Mapping[tuple[str, str], str]
End = tuple[float, float, str, str]  # x, y, name, colour
OFF_SCALE = 3.0  # times what 1 stands for


@dataclass(frozen=True)
class Ratio:
    """What is drawn; `noise` gives the interval within which a ratio means nothing, if there is one."""

    of: Callable[[Row], Interval]
    noise: Callable[[Row], Interval | None]
    title: str
    axis: str  # may name the {reference}


def _cost(row: Row) -> Cost:
    assert row.record.cost, "only timed rows are drawn here"
    return row.record.cost


def _over_floor(row: Row) -> Interval:
    floor_s = row.record.predicted.decode_floor_s if row.record.predicted else math.nan
    value = _cost(row).technique.tpot_s_p50 / floor_s if floor_s else math.nan
    return Interval(estimate=value, low=value, high=value, n=0)


def _noise(row: Row) -> Interval | None:
    noise = _cost(row).aa_tpot_ratio
    return None if noise.n == 1 else noise


TO_REFERENCE = Ratio(
    lambda row: _cost(row).tpot_ratio,
    _noise,
    "decode step, batch {batch} (grey: {reference} against itself)",
    "ratio to {reference}'s",
)
TO_FLOOR = Ratio(
    _over_floor,
    lambda row: None,
    "decode step, batch {batch} (1×: as fast as the machine allows)",
    "p50 over predicted floor",
)


def ratios(rows: Sequence[Row], names: Names, what: Ratio) -> Figure:
    """One panel per batch: a line per technique where there are several lengths, a dot per technique otherwise."""
    batches = group(rows, lambda row: row.cell.batch)
    several = [len({row.cell.seq_len for row in members}) > 1 for members in batches.values()]
    heights = [3.8 if lines else 1.1 + 0.34 * len(m) for m, lines in zip(batches.values(), several, strict=True)]
    drawn = figure(sum(heights))
    panels = drawn.subplots(len(batches), 1, squeeze=False, height_ratios=heights)[:, 0]
    ends: list[tuple[Axes, list[End]]] = []
    for axes, (batch, members), lines in zip(panels, batches.items(), several, strict=True):
        shown, beyond = _on_scale(members, what)
        if lines:
            ends.append((axes, _lines(axes, shown, names, what)))
        else:
            _dots(axes, shown, [names[row.strategy, row.variant].replace(", ", ",\n") for row in shown], what)
        axes.set_title(what.title.format(batch=q.count(batch), reference=members[0].setting.reference))
        _say_beyond(axes, beyond, names, what)
    for axes, found in ends:
        label_ends(drawn, axes, found)
    return drawn


def _on_scale(rows: Sequence[Row], what: Ratio) -> tuple[list[Row], list[Row]]:
    """Techniques to draw, and those so slow everywhere that drawing them would flatten all others."""
    slow = {
        key
        for key, members in group(rows, lambda row: (row.strategy, row.variant)).items()
        if min(what.of(row).estimate for row in members) > OFF_SCALE
    }
    beyond = [row for row in rows if (row.strategy, row.variant) in slow]
    return ([row for row in rows if row not in beyond], beyond) if len(beyond) < len(rows) else (list(rows), [])


def _say_beyond(axes: Axes, rows: Sequence[Row], names: Names, what: Ratio) -> None:
    """What is not drawn is said on a line of its own under the axis."""
    said = []
    for key, members in group(rows, lambda row: (row.strategy, row.variant)).items():
        found = [what.of(row).estimate for row in members]
        said.append(f"{names[key]} {' to '.join(dict.fromkeys([q.ratio(min(found)), q.ratio(max(found))]))}")
    if said:
        axes.set_xlabel(f"{axes.get_xlabel()}\n(far slower, not drawn: {q.words(said)})")


def _lines(axes: Axes, rows: Sequence[Row], names: Names, what: Ratio) -> list[End]:
    """Draws, and returns what is to be labelled once all panels have their place."""
    _noise_band(axes, rows, what)
    axes.axhline(1, color=INK, linewidth=0.8)
    ends = []
    for key, x, members in _dodged(rows):
        color, found = mark(key[0]).color, [what.of(row) for row in members]
        y = [ratio.estimate for ratio in found]
        axes.errorbar(x, y, error_bars(found), color=color, marker=mark(key[0]).marker, markersize=5, lw=1.3, capsize=2)
        drawn = [(place, value) for place, value in zip(x, y, strict=True) if math.isfinite(value)]
        ends += [(*point, names[key], color) for point in drawn[-1:]]
    length_axis(axes, (row.cell.seq_len for row in rows))
    ratio_axis(axes, "y", _ends(rows, what))
    axes.set_ylabel(what.axis.format(reference=rows[0].setting.reference))
    return ends


def _dodged(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[float], list[Row]]]:
    """(strategy, variant), lengths moved a little sideways so that equal values stay visible, rows."""
    series = group(rows, lambda row: (row.strategy, row.variant))
    return [
        (key, [row.cell.seq_len * 2 ** (0.04 * dodge(index, len(series))) for row in members], members)
        for index, (key, members) in enumerate(series.items())
    ]


def _noise_band(axes: Axes, rows: Sequence[Row], what: Ratio) -> None:
    """At each length the hull of the reference's intervals against itself."""
    noise = group([(row.cell.seq_len, span) for row in rows if (span := what.noise(row))], lambda pair: pair[0])
    lengths = sorted(noise)
    low = [min(span.low for _, span in noise[n]) for n in lengths]
    high = [max(span.high for _, span in noise[n]) for n in lengths]
    axes.fill_between(lengths, low, high, color=NOISE, alpha=0.6, linewidth=0)


def _dots(axes: Axes, rows: Sequence[Row], labels: Sequence[str], what: Ratio) -> None:
    for height, row in enumerate(rows):
        ratio, own = what.of(row), mark(row.strategy)
        if noise := what.noise(row):
            axes.fill_betweenx([height - 0.4, height + 0.4], noise.low, noise.high, color=NOISE, alpha=0.6, linewidth=0)
        axes.errorbar(ratio.estimate, height, xerr=error_bars([ratio]), color=own.color, marker=own.marker, capsize=3)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    ratio_axis(axes, "x", _ends(rows, what))
    lengths = q.words(q.count(n) for n in sorted({row.cell.seq_len for row in rows}))
    axes.set_xlabel(f"{what.axis.format(reference=rows[0].setting.reference)} at {lengths} tokens")


def _ends(rows: Sequence[Row], what: Ratio) -> list[float]:
    """Every value that an axis has to show; one sample shows its estimate alone."""
    intervals = [i for row in rows for i in (what.of(row), what.noise(row)) if i]
    return [1.0, *(end for i in intervals for end in ([i.estimate] if i.n == 1 else [i.low, i.high]))]


def kv_bytes(rows: Sequence[Row], names: Names) -> Figure | None:
    """Log-log, smallest batch; a technique that holds nothing has no place on it and is named below. None where there
    is nothing to draw or a single length, which the tables say better.
    """
    batch = min(row.cell.batch for row in rows)
    rows = [row for row in rows if row.cell.batch == batch]
    empty = {(row.strategy, row.variant) for row in rows if _held(row) <= 0}
    shown = [row for row in rows if (row.strategy, row.variant) not in empty]
    if len({row.cell.seq_len for row in shown}) < 2:
        return None
    drawn = figure(3.8)
    axes = drawn.subplots()
    ends = []
    for key, x, members in _dodged(shown):
        color, held = mark(key[0]).color, [_held(row) for row in members]
        axes.plot(x, held, color=color, marker=mark(key[0]).marker, markersize=5, linewidth=1.3)
        ends.append((x[-1], held[-1], names[key], color))
    length_axis(axes, (row.cell.seq_len for row in shown))
    bytes_axis(axes, map(_held, shown))
    if empty:
        axes.set_xlabel(f"prompt tokens\n(holds nothing, not drawn: {q.words(sorted(names[key] for key in empty))})")
    axes.set_title(f"keys and values held after the last step, batch {q.count(batch)}")
    label_ends(drawn, axes, ends)
    return drawn


def _held(row: Row) -> int:
    return _cost(row).technique.kv_bytes_held[-1]


def technique(rows: Sequence[Row]) -> Figure:
    """Ratio at every length and batch; latency and bytes by step at the longest length."""
    drawn = figure(max(2.8, 1.3 + 0.26 * len(rows)))
    ratio_axes, latency_axes, bytes_axes = drawn.subplots(1, 3, width_ratios=(1.2, 1, 1))
    labels = [f"{q.count(row.cell.seq_len)} {q.TIMES} {q.count(row.cell.batch)}" for row in rows]
    _dots(ratio_axes, rows, labels, TO_REFERENCE)
    reference, longest = rows[0].setting.reference, step_plots.longest(rows)
    ratio_axes.set(ylabel=f"tokens {q.TIMES} batch", xlabel=f"ratio to {reference}'s", title="decode step")
    step_plots.latency_panel(latency_axes, longest)
    step_plots.bytes_panel(bytes_axes, longest)
    latency_axes.set(xlabel=f"decode step\n(grey: {reference})", title=f"time, {step_plots.where(longest)}")
    bytes_axes.set(xlabel=f"decode step\n(grey: {reference})", title="KV bytes held")
    return drawn
