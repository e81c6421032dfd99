"""Interactive charts of what was achieved of the machine, and of time against quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, fullest
from pipeline.report.drawing import INK, Mark, mark
from pipeline.report.page.charts import HIDDEN, Chart, View, names, plain, points, ratios
from pipeline.report.tokens import ceiling_plots, tradeoff
from pipeline.report.tokens.ceiling_plots import Pair
from pipeline.report.tokens.cost_plots import OFF_SCALE
from pipeline.report.tokens.tradeoff import Both

Names = Mapping[tuple[str, str], str]
CEILING = {"symbol": "line-ns-open", "size": 16, "color": INK, "line": {"width": 2}}


def roofline(rows: Sequence[Row], named: Names) -> dict[str, Chart]:
    """Rows that were timed, at the point where most were: rates, each with the highest ceiling."""
    shown = [row for row in fullest(rows, rows) if row.record.cost and row.record.predicted]
    if not shown:
        return {}
    decode = _achieved(shown, named, ceiling_plots.bandwidth, "decode: bytes read", "B")
    prefill = _achieved(shown, named, ceiling_plots.products, "prefill: matrix products", "FLOP")
    return {"roofline": Chart([decode, prefill])}


def _achieved(rows: Sequence[Row], named: Names, of: Callable[[Row], Pair], what: str, unit: str) -> View:
    """The interval is from the slowest trial to the fastest."""
    lines = [named[row.strategy, row.variant] for row in rows]
    pairs = [pair for _, pair in ceiling_plots.achieved(rows, of)]
    ceilings = [ceiling for ceiling, _ in pairs]
    said = [q.per_second(ceiling, unit) for ceiling in ceilings]
    ceiling = points("measured ceiling", Mark(INK, "o"), ceilings, lines, said, mode="markers", marker=CEILING)
    traces = [ceiling]
    for row, line, (_, found) in zip(rows, lines, pairs, strict=True):
        hover = [f"{q.per_second(found.estimate, unit)} [{found.low / 1e9:.3g},{q.GLUE}{found.high / 1e9:.3g}]"]
        traces.append(points(line, mark(row.strategy), [found.estimate], [line], hover, [found], mode="markers"))
    axis = plain(f"{what} per second", ticksuffix=f"{unit}/s", tickformat="~s", rangemode="tozero")
    return View(what, traces, axis, names(lines))


def speed_quality(found: Sequence[Both]) -> dict[str, Chart]:
    """A mark for each technique, with both intervals; those far slower start switched off."""
    traces = []
    for one in found:
        far: dict[str, Any] = {"visible": HIDDEN} if one.step.estimate > OFF_SCALE else {}
        hover = [
            f"{q.ratio_interval(one.step)}, {one.speed}<br>recall lost {q.signed_interval(one.loss)}, {one.recall}"
        ]
        x, y = [one.loss.estimate], [one.step.estimate]
        own = mark(one.timed.strategy)
        traces.append(points(one.name, own, x, y, hover, [one.step], [one.loss], mode="markers", **far))
    over = f"decode step, ratio to {found[0].timed.setting.reference}'s"
    return {"speed_quality": Chart([View(tradeoff.where(found), traces, plain("recall lost (0: none)"), ratios(over))])}
