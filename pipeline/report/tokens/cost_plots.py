"""Figures of time and bytes: ratios to the reference, bytes against length, and the cost of one technique."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, fullest, group
from pipeline.record import Cost, Interval
from pipeline.report.drawing import (
    INK,
    LABEL_IN,
    NOISE,
    ROW_IN,
    across,
    dodge,
    error_bars,
    figure,
    label_ends,
    mark,
    name_rows,
)
from pipeline.report.scales import bytes_axis, length_axis, ratio_axis
from pipeline.report.tokens import step_plots

Names = Mapping[tuple[str, str], str]
End = tuple[float, float, str, str]  # x, y, name, colour
TICKS = 4  # lengths that have room to be named in a third of a figure
OFF_SCALE = 3.0  # times the reference


def _cost(row: Row) -> Cost:
    assert row.record.cost, "only timed rows are drawn here"
    return row.record.cost


def _ratio(row: Row) -> Interval:
    return _cost(row).tpot_ratio


def _noise(row: Row) -> Interval | None:
    noise = _cost(row).aa_tpot_ratio
    return None if noise.n == 1 else noise


def _key(row: Row) -> tuple[str, str]:
    return row.strategy, row.variant


def ratios(rows: Sequence[Row], names: Names) -> Figure:
    """One panel per batch: a line per technique where most have several lengths, otherwise a dot per technique."""
    batches = group(rows, lambda row: row.cell.batch)
    lines = {batch: over_lengths(members) for batch, members in batches.items()}
    shown = {batch: lines[batch] or fullest(members, members) for batch, members in batches.items()}
    heights = [_height(lines[batch], members) for batch, members in shown.items()]
    drawn = figure(sum(heights))
    panels = drawn.subplots(len(batches), 1, squeeze=False, height_ratios=heights)[:, 0]
    ends: list[tuple[Axes, list[End]]] = []
    for axes, (batch, members) in zip(panels, shown.items(), strict=True):
        near, beyond = _on_scale(members)
        if lines[batch]:
            ends.append((axes, _lines(axes, near, names)))
        else:
            near.sort(key=lambda row: _ratio(row).estimate)
            _dots(axes, near, [names[_key(row)].replace(", ", ",\n") for row in near])
        reference = members[0].setting.reference
        axes.set_title(f"decode step, batch {q.count(batch)} (grey: {reference} against itself)")
        _say_beyond(axes, beyond, names)
    for axes, found in ends:
        label_ends(drawn, axes, found)
    return drawn


def over_lengths(rows: Sequence[Row]) -> list[Row]:
    """The techniques that have several lengths, where these are most; none where a line would be an exception."""
    series = group(rows, _key).values()
    several = [members for members in series if len({row.cell.seq_len for row in members}) > 1]
    return [row for members in several for row in members] if 2 * len(several) > len(series) else []


def _height(lines: Sequence[Row], shown: Sequence[Row]) -> float:
    n = len({_key(row) for row in shown})
    return max(3.8, 1.2 + LABEL_IN * n) if lines else 1.2 + 1.2 * ROW_IN * n


def _on_scale(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Techniques to draw, and those so slow everywhere that drawing them would flatten all others."""
    slow = {
        key for key, members in group(rows, _key).items() if min(_ratio(row).estimate for row in members) > OFF_SCALE
    }
    beyond = [row for row in rows if _key(row) in slow]
    return ([row for row in rows if _key(row) not in slow], beyond) if len(beyond) < len(rows) else (list(rows), [])


def _say_beyond(axes: Axes, rows: Sequence[Row], names: Names) -> None:
    """What is not drawn is said on a line of its own under the axis."""
    said = []
    for key, members in group(rows, _key).items():
        found = [_ratio(row).estimate for row in members]
        said.append(f"{names[key]} {' to '.join(dict.fromkeys([q.ratio(min(found)), q.ratio(max(found))]))}")
    if said:
        axes.set_xlabel(f"{axes.get_xlabel()}\n(far slower, not drawn: {q.words(said)})")


def _lines(axes: Axes, rows: Sequence[Row], names: Names) -> list[End]:
    """Draws, and returns what is to be labelled once all panels have their place."""
    _noise_band(axes, rows)
    axes.axhline(1, color=INK, linewidth=0.8)
    ends = []
    for key, x, members in _dodged(rows):
        own, found = mark(key[0]), [_ratio(row) for row in members]
        y = [ratio.estimate for ratio in found]
        axes.errorbar(
            x, y, error_bars(found), color=own.color, marker=own.marker, mfc=own.fill, markersize=5, lw=1.3, capsize=2
        )
        drawn = [(place, value) for place, value in zip(x, y, strict=True) if math.isfinite(value)]
        ends += [(*point, names[key], own.color) for point in drawn[-1:]]
    length_axis(axes, (row.cell.seq_len for row in rows))
    ratio_axis(axes, "y", _ends(rows))
    axes.set_ylabel(f"ratio to {rows[0].setting.reference}'s")
    return ends


def _dodged(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[float], list[Row]]]:
    """(strategy, variant), lengths moved a little sideways so that equal values stay visible, rows."""
    series = group(rows, _key)
    return [
        (key, [row.cell.seq_len * 2 ** (0.04 * dodge(index, len(series))) for row in members], members)
        for index, (key, members) in enumerate(series.items())
    ]


def _noise_band(axes: Axes, rows: Sequence[Row]) -> None:
    """At each length the hull of the reference's intervals against itself."""
    noise = group([(row.cell.seq_len, span) for row in rows if (span := _noise(row))], lambda pair: pair[0])
    lengths = sorted(noise)
    low = [min(span.low for _, span in noise[n]) for n in lengths]
    high = [max(span.high for _, span in noise[n]) for n in lengths]
    axes.fill_between(lengths, low, high, color=NOISE, alpha=0.6, linewidth=0)


def _dots(axes: Axes, rows: Sequence[Row], labels: Sequence[str]) -> None:
    for height, row in enumerate(rows):
        if noise := _noise(row):
            axes.fill_betweenx([height - 0.4, height + 0.4], noise.low, noise.high, color=NOISE, alpha=0.6, linewidth=0)
        across(axes, _ratio(row), height, mark(row.strategy))
    axes.axvline(1, color=INK, linewidth=0.8)
    name_rows([axes], labels)
    ratio_axis(axes, "x", _ends(rows))
    lengths = q.words(q.count(n) for n in sorted({row.cell.seq_len for row in rows}))
    axes.set_xlabel(f"ratio to {rows[0].setting.reference}'s at {lengths} tokens")


def _ends(rows: Sequence[Row]) -> list[float]:
    """Every value that an axis has to show; one sample shows its estimate alone."""
    intervals = [i for row in rows for i in (_ratio(row), _noise(row)) if i]
    return [1.0, *(end for i in intervals for end in ([i.estimate] if i.n == 1 else [i.low, i.high]))]


def kv_bytes(rows: Sequence[Row], names: Names) -> Figure | None:
    """Log-log, smallest batch; a technique that holds nothing has no place on it and is named below. None where there
    is nothing to draw or most were measured at a single length, which the tables say better.
    """
    batch = min(row.cell.batch for row in rows)
    rows = over_lengths([row for row in rows if row.cell.batch == batch])
    empty = {_key(row) for row in rows if held(row) <= 0}
    shown = [row for row in rows if _key(row) not in empty]
    if not shown:
        return None
    drawn = figure(_height(shown, shown))
    axes = drawn.subplots()
    ends = []
    for key, x, members in _dodged(shown):
        own, taken = mark(key[0]), [held(row) for row in members]
        axes.plot(x, taken, color=own.color, marker=own.marker, mfc=own.fill, markersize=5, linewidth=1.3)
        ends.append((x[-1], taken[-1], names[key], own.color))
    length_axis(axes, (row.cell.seq_len for row in shown))
    bytes_axis(axes, map(held, shown))
    if empty:
        axes.set_xlabel(f"prompt tokens\n(holds nothing, not drawn: {q.words(sorted(names[key] for key in empty))})")
    axes.set_title(f"keys and values held after the last step, batch {q.count(batch)}")
    label_ends(drawn, axes, ends)
    return drawn


def held(row: Row) -> int:
    return _cost(row).technique.kv_bytes_held[-1]


def technique(rows: Sequence[Row]) -> Figure:
    """Ratio by length, a line for each batch; latency and bytes by step at the longest length."""
    drawn = figure(2.8)
    ratio_axes, latency_axes, bytes_axes = drawn.subplots(1, 3, width_ratios=(1.2, 1, 1))
    _by_batch(ratio_axes, rows)
    reference, longest = rows[0].setting.reference, step_plots.longest(rows)
    step_plots.latency_panel(latency_axes, longest)
    step_plots.bytes_panel(bytes_axes, longest)
    latency_axes.set(xlabel=f"decode step\n(grey: {reference})", title=f"time, {step_plots.where(longest)}")
    bytes_axes.set(xlabel=f"decode step\n(grey: {reference})", title="KV bytes held")
    return drawn


def _by_batch(axes: Axes, rows: Sequence[Row]) -> None:
    """Filled and solid: the smallest batch; a name at the end of each line where there are several."""
    noise = [(row.cell.seq_len, span.low, span.high) for row in rows if (span := _noise(row))]
    for length, low, high in noise:
        axes.plot([length] * 2, [low, high], color=NOISE, linewidth=9, alpha=0.6, solid_capstyle="butt", zorder=1)
    axes.axhline(1, color=INK, linewidth=0.8)
    batches = group(rows, lambda row: row.cell.batch)
    for number, (batch, members) in enumerate(sorted(batches.items())):
        own, found = mark(members[0].strategy), [_ratio(row) for row in members]
        lengths, y = [row.cell.seq_len for row in members], [ratio.estimate for ratio in found]
        axes.errorbar(lengths, y, error_bars(found), color=own.color, marker=own.marker, capsize=2, lw=1.3,
                      mfc="white" if number else own.fill, ls="--" if number else "-")  # fmt: skip
        if len(batches) > 1:
            axes.annotate(f"batch {q.count(batch)}", (lengths[-1], y[-1]), (5, 4 - 13 * number), fontsize=8, color=INK,
                          textcoords="offset points", annotation_clip=False)  # fmt: skip
    lengths = sorted({row.cell.seq_len for row in rows}, reverse=True)
    length_axis(axes, lengths[:: math.ceil(len(lengths) / TICKS)])
    ratio_axis(axes, "y", _ends(rows))
    reference = rows[0].setting.reference
    axes.set(xlabel=f"prompt tokens\n(grey: {reference} against itself)", title=f"decode step, ratio to {reference}'s")
