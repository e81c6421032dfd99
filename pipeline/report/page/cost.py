"""Interactive charts of cost: ratios and bytes by length, latency, bytes and peak memory by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, fullest, group, label
from pipeline.record import Arm, Cost, Interval
from pipeline.report.drawing import REFERENCE, mark
from pipeline.report.page.charts import (
    HIDDEN,
    Axis,
    Chart,
    Trace,
    View,
    band,
    bytes_held,
    curve,
    in_mebibytes,
    lengths,
    mebibytes,
    names,
    plain,
    points,
    ratios,
    seconds,
    spans,
)
from pipeline.report.tokens.cost_plots import OFF_SCALE
from pipeline.report.tokens.step_plots import longest, running_median

Names = Mapping[tuple[str, str], str]
Samples = Callable[[Arm], Sequence[float] | Sequence[int] | None]


def of_setting(rows: Sequence[Row], named: Names) -> dict[str, Chart]:
    """By the name of the figure that it stands for; rows that were timed."""
    shown = [row for row in fullest(rows, rows) if row.record.cost]
    return {
        "decode_ratio": Chart([*_ratios_at_points(rows, named), *_ratios_over_lengths(rows, named)]),
        "kv_bytes": Chart([_bytes_view(members, named) for members in _batches(rows)]),
        "step_latency": Chart([_latency_of_all(shown, named)]),
        "step_bytes": Chart([_by_step(shown, named, lambda arm: arm.kv_bytes_held, "keys and values held")]),
        "step_memory": Chart([_by_step(shown, named, lambda arm: arm.step_peak_memory_bytes, "peak memory")]),
    }


def of_technique(rows: Sequence[Row]) -> Chart:
    """Rows of one strategy: its ratio at every point; time and bytes of each step at the longest length."""
    at = [f"{q.count(row.cell.seq_len)} {q.TIMES} {q.count(row.cell.batch)}" for row in rows]
    found = [_cost(row).tpot_ratio for row in rows]
    hover = [_said(row) for row in rows]
    estimates = [ratio.estimate for ratio in found]
    name = rows[0].strategy
    noise = spans(_itself(rows), at, [_cost(row).aa_tpot_ratio for row in rows])
    dots = points(label(name), mark(name), estimates, at, hover, found, mode="markers")
    ratio = View(f"ratio at each tokens {q.TIMES} batch", [noise, dots], ratios(_over(rows)), names(at))
    by_step = [_latency_of_one(longest(rows)), _bytes_of_one(longest(rows))]
    return Chart([ratio, *by_step] if len(rows) > 1 else by_step)  # a single ratio is in the table


def _cost(row: Row) -> Cost:
    assert row.record.cost, "only timed rows are drawn here"
    return row.record.cost


def _batches(rows: Sequence[Row]) -> list[list[Row]]:
    return list(group(rows, lambda row: row.cell.batch).values())


def _series(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    return group(rows, lambda row: (row.strategy, row.variant))


def _batch(rows: Sequence[Row]) -> str:
    return f"batch {q.count(rows[0].cell.batch)}"


def _where(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} tokens, batch {q.count(row.cell.batch)}"


def _said(row: Row) -> str:
    cost = _cost(row)
    verdict = verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio)
    return f"{q.ratio_interval(cost.tpot_ratio)}, {verdict}<br>{_where(row)}"


def _ratios_at_points(rows: Sequence[Row], named: Names) -> Iterator[View]:
    """A line of its own for each technique; first where most were measured."""
    points_found = group(rows, lambda row: row.point).values()
    for members in sorted(points_found, key=lambda found: (-len(found), found[0].cell.batch, -found[0].cell.seq_len)):
        lines = [named[row.strategy, row.variant] for row in members]
        traces = [spans(_itself(members), lines, [_cost(row).aa_tpot_ratio for row in members])]
        for row, line in zip(members, lines, strict=True):
            ratio = _cost(row).tpot_ratio
            far: dict[str, Any] = {"visible": HIDDEN} if ratio.estimate > OFF_SCALE else {}
            own = mark(row.strategy)
            traces.append(points(line, own, [ratio.estimate], [line], [_said(row)], [ratio], mode="markers", **far))
        yield View(_where(members[0]), traces, ratios(_over(members)), names(lines))


def _ratios_over_lengths(rows: Sequence[Row], named: Names) -> Iterator[View]:
    """What is far slower than all others starts switched off: drawing it would flatten them."""
    for members in _batches(rows):
        lines = {key: own for key, own in _series(members).items() if len({row.cell.seq_len for row in own}) > 1}
        traces = [_noise([row for own in lines.values() for row in own])] if lines else []
        for (strategy, variant), own in lines.items():
            found = [_cost(row).tpot_ratio for row in own]
            estimates, at = [ratio.estimate for ratio in found], [row.cell.seq_len for row in own]
            far: dict[str, Any] = {"visible": HIDDEN} if min(estimates) > OFF_SCALE else {}
            hover = [_said(row) for row in own]
            traces.append(points(named[strategy, variant], mark(strategy), at, estimates, hover, found, **far))
        across = lengths("prompt tokens", (row.cell.seq_len for own in lines.values() for row in own))
        yield View(f"by length, {_batch(members)}", traces, across, ratios(_over(members)))


def _over(rows: Sequence[Row]) -> str:
    return f"decode step, ratio to {rows[0].setting.reference}'s"


def _itself(rows: Sequence[Row]) -> str:
    return f"{rows[0].setting.reference} against itself"


def _noise(rows: Sequence[Row]) -> Trace:
    """At each length the hull of the reference's intervals against itself."""
    spans = group(((row.cell.seq_len, _cost(row).aa_tpot_ratio) for row in rows), lambda pair: pair[0])
    hulls = {at: _hull([span for _, span in spans[at]]) for at in sorted(spans)}
    low, high = zip(*hulls.values(), strict=True)
    return band(_itself(rows), list(hulls), low, high)


def _hull(spans: Sequence[Interval]) -> tuple[float, float]:
    ends = [end for span in spans for end in (span.low, span.high) if math.isfinite(end)] or [1.0]
    return min(ends), max(ends)


def _bytes_view(rows: Sequence[Row], named: Names) -> View:
    """What holds nothing has no place on a logarithmic axis."""
    traces = []
    for (strategy, variant), members in _series(rows).items():
        held = [_cost(row).technique.kv_bytes_held[-1] for row in members]
        if min(held) > 0:
            hover = [
                f"{q.data(n)}, {q.share(row.share)}<br>{_where(row)}" for n, row in zip(held, members, strict=True)
            ]
            at = [row.cell.seq_len for row in members]
            traces.append(points(named[strategy, variant], mark(strategy), at, held, hover))
    across = lengths("prompt tokens", (row.cell.seq_len for row in rows))
    return View(_batch(rows), traces, across, bytes_held("held after the last step", _all(traces)))


def _all(traces: Sequence[Trace]) -> list[float]:
    return [n for trace in traces for n in trace["y"]]


def _latency_of_all(rows: Sequence[Row], named: Names) -> View:
    traces = []
    for row in rows:
        middle = running_median(_cost(row).technique.step_s)
        far: dict[str, Any] = {"visible": HIDDEN} if _cost(row).tpot_ratio.estimate > OFF_SCALE else {}
        hover = [q.seconds(value) for value in middle]
        traces.append(curve(named[row.strategy, row.variant], mark(row.strategy).color, middle, hover, **far))
    return View("running median", traces, _steps(rows[0], "decode step"), seconds("running median of its time"))


def _steps(row: Row, title: str) -> Axis:
    return plain(f"{title}, {_where(row)}")


def _by_step(rows: Sequence[Row], named: Names, of: Samples, what: str) -> View:
    """The later, the thinner: techniques of one budget hold the same, and each has to be seen."""
    taken = [(row, found) for row in rows if (found := of(_cost(row).technique))]
    traces = []
    for n_later, (row, found) in zip(reversed(range(len(taken))), taken, strict=True):
        line = {"color": mark(row.strategy).color, "width": 1.2 + 4 * n_later / len(taken), "shape": "hvh"}
        hover = [q.data(n) for n in found]
        name = named[row.strategy, row.variant]
        traces.append(curve(name, mark(row.strategy).color, in_mebibytes(found), hover, first=0, line=line))
    return View(what, traces, _steps(rows[0], "decode step (0: the prompt)"), mebibytes(what))


def _latency_of_one(row: Row) -> View:
    cost, color = _cost(row), mark(row.strategy).color
    arms = ((row.setting.reference, cost.full, REFERENCE), (label(row.strategy), cost.technique, color))
    traces = [trace for title, arm, own in arms for trace in _raw_and_middle(title, arm.step_s, own)]
    return View("time of each step", traces, _steps(row, "decode step"), seconds("time of a decode step"))


def _raw_and_middle(name: str, samples: Sequence[float], color: str) -> list[Trace]:
    faint: dict[str, Any] = {"opacity": 0.5, "line": {"color": color, "width": 1}}
    middle = running_median(samples)
    return [
        curve(f"{name}, every step", color, samples, [q.seconds(value) for value in samples], **faint),
        curve(f"{name}, running median", color, middle, [q.seconds(value) for value in middle]),
    ]


def _bytes_of_one(row: Row) -> View:
    cost, color = _cost(row), mark(row.strategy).color
    arms = ((row.setting.reference, cost.full, REFERENCE), (label(row.strategy), cost.technique, color))
    traces = [
        curve(title, own, in_mebibytes(held := arm.kv_bytes_held), [q.data(n) for n in held], first=0)
        for title, arm, own in arms
    ]
    return View("bytes after each step", traces, _steps(row, "decode step (0: the prompt)"), mebibytes("held"))
