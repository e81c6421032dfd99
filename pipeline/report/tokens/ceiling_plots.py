"""Cost as it was predicted and as it was measured, and what was achieved of the machine's measured ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row
from pipeline.record import Cost, Interval
from pipeline.report import captions
from pipeline.report.drawing import INK, ROW_IN, across, bound, figure, mark, name_rows, of_trials
from pipeline.report.scales import bytes_axis, log_axis

Names = Mapping[tuple[str, str], str]
Pair = tuple[float, Interval]  # what shapes predict or the machine could do, and what was measured
Pairs = list[tuple[Row, Pair]]
AROUND_IN = 1.15


def predicted(rows: Sequence[Row], names: Names) -> Figure:
    """Rows at one point that have a prediction: bytes held, decode step, first token, each with what was foreseen."""
    drawn = figure(AROUND_IN + ROW_IN * len(rows))
    panels = drawn.subplots(1, 3, sharey=True)
    parts = (("KV bytes held", _bytes), ("decode step", _step), ("first token", _first))
    for axes, (title, of) in zip(panels, parts, strict=True):
        pairs = [(row, of(row)) for row in rows]
        _draw(axes, pairs)
        ends = [value for _, (at, found) in pairs for value in (at, found.low, found.high) if _is_drawn(value)]
        if of is _bytes and ends:
            bytes_axis(axes, ends, "x")
        elif ends:
            log_axis(axes, "x", ends, FuncFormatter(lambda value, _: q.tick(q.seconds(value))))
        axes.set_title(title)
        axes.tick_params(axis="x", labelsize=8)
    name_rows(panels, [names[row.strategy, row.variant] for row in rows])
    drawn.supxlabel(
        f"mark: measured, from the fastest to the slowest trial; bar: predicted from shapes and measured ceilings\n"
        f"{_where(rows)}",
        fontsize=10,
    )
    return drawn


def roofline(rows: Sequence[Row], names: Names) -> Figure:
    """Bytes per second of decode steps and products per second of prefill, each beside its measured ceiling."""
    drawn = figure(AROUND_IN + ROW_IN * len(rows))
    panels = drawn.subplots(1, 2, sharey=True)
    parts = (("decode: bytes read", bandwidth, "B"), ("prefill: matrix products", products, "FLOP"))
    for axes, (title, of, unit) in zip(panels, parts, strict=True):
        _draw(axes, achieved(rows, of))
        axes.set_title(f"{title}, G{unit}/s")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e9:g}"))
    name_rows(panels, [names[row.strategy, row.variant] for row in rows])
    drawn.supxlabel(
        f"mark: achieved, from the slowest to the fastest trial; bar: the highest ceiling measured in these processes\n"
        f"{_where(rows)}",
        fontsize=10,
    )
    return drawn


def predicted_text(rows: Sequence[Row], names: Names) -> str:
    step = {names[row.strategy, row.variant]: _over(_step(row)) for row in rows}
    held = {names[row.strategy, row.variant]: _over(_bytes(row)) for row in rows}
    return (
        f"predicted and measured cost, {_where(rows)}: measured over predicted, decode step "
        f"{captions.span(step, q.ratio)}, bytes held {captions.span(held, q.ratio)}"
    )


def roofline_text(rows: Sequence[Row], names: Names) -> str:
    parts = []
    for what, of in (("bandwidth in decode", bandwidth), ("FLOP/s in prefill", products)):
        shares = {names[row.strategy, row.variant]: _over(pair) for row, pair in achieved(rows, of)}
        above = sum(share > 1 for share in shares.values())
        note = f", {q.plural(above, 'technique')} above it" if above else ""
        parts.append(f"{what} {captions.span(shares, q.share)} of the measured ceiling{note}")
    return f"what was achieved of the machine, {_where(rows)}: {'; '.join(parts)}"


def achieved(rows: Sequence[Row], of: Callable[[Row], Pair]) -> Pairs:
    """What each achieved, beside the highest ceiling of all: each process measures its own, beside other work lower."""
    pairs = [(row, of(row)) for row in rows]
    ceiling = max((at for _, (at, _) in pairs), default=math.nan)
    return [(row, (ceiling, found)) for row, (_, found) in pairs]


def _cost(row: Row) -> Cost:
    assert row.record.cost and row.record.predicted, "only timed rows with a prediction are drawn here"
    return row.record.cost


def _of(row: Row, name: str) -> float:
    return float(getattr(row.record.predicted, name))


def _bytes(row: Row) -> Pair:
    held = float(_cost(row).technique.kv_bytes_held[-1])
    return _of(row, "kv_bytes_held"), Interval(estimate=held, low=held, high=held, n=0)


def _step(row: Row) -> Pair:
    return row.step_floor_s or math.nan, of_trials(_cost(row).technique.tpot_s)


def _first(row: Row) -> Pair:
    return _of(row, "prefill_floor_s"), of_trials(_cost(row).technique.ttft_s)


def bandwidth(row: Row) -> Pair:
    """Ceiling and what was achieved, bytes per second, of what a step must read."""
    read = _of(row, "decode_bytes_per_step")
    return _cost(row).copy_bandwidth_bytes_per_s, of_trials([read / taken for taken in _cost(row).technique.tpot_s])


def products(row: Row) -> Pair:
    """Ceiling and what was achieved, FLOP per second."""
    flop = _of(row, "prefill_flop")
    return _cost(row).matmul_flop_per_s, of_trials([flop / taken for taken in _cost(row).technique.ttft_s])


def _over(pair: Pair) -> float:
    ceiling, found = pair
    return found.estimate / ceiling if ceiling else math.nan


def _is_drawn(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _draw(axes: Axes, pairs: Pairs) -> None:
    """What is zero has no place on a logarithmic axis, and what was not measured on none: both are said."""
    for height, (row, (at, found)) in enumerate(pairs):
        if _is_drawn(at):
            bound(axes, at, height)
        if _is_drawn(found.estimate):
            across(axes, found, height, mark(row.strategy))
        else:
            said = "nothing" if found.estimate == 0 else "not measured"
            axes.annotate(said, (0.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)


def _where(rows: Sequence[Row]) -> str:
    return f"{q.count(rows[0].cell.seq_len)} tokens, batch {q.count(rows[0].cell.batch)}"
