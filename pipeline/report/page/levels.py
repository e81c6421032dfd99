"""Interactive charts beside the token level's: architectures by length and bytes, engines by prompts at once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipeline.findings import quantities as q
from pipeline.findings.evidence import BASELINE, Row, group
from pipeline.findings.means import shifted
from pipeline.record import Interval
from pipeline.report.models import plots as model_plots
from pipeline.report.models.architectures import Architecture, architectures, at, lengths, longest_trained, recall, text
from pipeline.report.models.panels import look
from pipeline.report.page.charts import Axis, Chart, Trace, View, bars, bytes_held, plain, seconds
from pipeline.report.page.charts import lengths as length_axis
from pipeline.report.page.charts import points as marks
from pipeline.report.system import engine_plots
from pipeline.report.system.engines import EQUAL_LENGTHS, MIXED, ORDER, Point, points


def of_models(rows: Sequence[Row]) -> dict[str, Chart]:
    """By the name of the figure that it stands for."""
    found = architectures(rows)
    return {"model_bytes": Chart([_held(found)]), "model_quality": Chart([_recalled(found), _read(found)])}


def of_engines(rows: Sequence[Row]) -> dict[str, Chart]:
    """Tokens per second, a view for each model and lengths; and of lengths that differ how long a first token takes."""
    found = points(rows)
    alike, mixed = ([point for point in found if point.workload == own] for own in (EQUAL_LENGTHS, MIXED))
    asked = group(alike, lambda point: (point.model, point.seq_len, point.n_new_tokens))
    throughput = Chart([_throughput(members) for members in asked.values()])
    return {"engines": throughput, "engines_waiting": Chart([_waiting(point) for point in mixed])}


def _held(found: Sequence[Architecture]) -> View:
    """What holds nothing has no place on a logarithmic axis."""
    shown = [one for one in found if one.held and min(one.held.values()) > 0]
    traces = []
    for one in shown:
        hover = [f"{q.data(n)}<br>{q.count(seq_len)} tokens" for seq_len, n in one.held.items()]
        traces.append(marks(one.name, look(one), list(one.held), list(one.held.values()), hover))
    across = length_axis("prompt tokens", lengths(shown))
    up = bytes_held("held after the last step", [n for one in shown for n in one.held.values()])
    return View("bytes held", traces, across, up)


def _recalled(found: Sequence[Architecture]) -> View:
    seq_len = longest_trained(found)
    recalled = [(one, own) for one in found if (own := recall(at(seq_len, one.recalled)))]
    placed = [(one, statistics.fmean(task.kv_bytes_held for task in own.tasks), own.accuracy) for one, own in recalled]
    return View(f"recall at {q.count(seq_len or 0)} tokens", _scatter(placed), _bytes(placed), plain("mean over tasks"))


def _read(found: Sequence[Architecture]) -> View:
    """The interval is that of the difference from the reference."""
    seq_len = longest_trained(found)
    read = [(one, own) for one in found if (own := text(at(seq_len, one.recalled)))]
    placed = [(one, float(own.kv_bytes_held), shifted(own.nll_difference, own.nll_full)) for one, own in read]
    return View(f"text at {q.count(seq_len or 0)} tokens", _scatter(placed), _bytes(placed), plain("loss, nats"))


def _scatter(placed: Sequence[model_plots.Point]) -> list[Trace]:
    return [
        marks(one.name, look(one), [held], [value.estimate], [_said(held, value)], [value], mode="markers")
        for one, held, value in placed
    ]


def _said(held: float, value: Interval) -> str:
    return f"{q.decimal_interval(value)}<br>{q.data(held)}"


def _bytes(placed: Sequence[model_plots.Point]) -> Axis:
    return bytes_held("bytes held of one sequence", [held for _, held, _ in placed])


def _throughput(asked: Sequence[Point]) -> View:
    first = asked[0]
    traces = [trace for engine in ORDER if (trace := _engine(engine, asked))["x"]]
    name = f"{first.model}, {q.plural(first.seq_len, 'token')}, {q.count(first.n_new_tokens)} new"
    return View(name, traces, plain("prompts at once", type="category"), plain("new tokens per second"))


def _engine(name: str, asked: Sequence[Point]) -> Trace:
    """The interval is from the slowest trial to the fastest."""
    served = [(point, engine_plots.rate(own.serving)) for point in asked
              if (own := point.of(name, BASELINE)) and own.serving]  # fmt: skip
    prompts, rates = [q.count(point.n_prompts) for point, _ in served], [rate for _, rate in served]
    hover = [f"{q.three(rate.estimate)} [{q.three(rate.low)},{q.GLUE}{q.three(rate.high)}]" for rate in rates]
    return bars(engine_plots.TITLES[name], engine_plots.COLORS[name], prompts, rates, hover)


def _waiting(point: Point) -> View:
    traces = []
    for engine, serving in engine_plots.served(point).items():
        seen = engine_plots.wait(serving)
        hover = f"{q.seconds(seen.estimate)}<br>nine in ten {q.seconds(seen.high)}"
        name, color = engine_plots.TITLES[engine], engine_plots.COLORS[engine]
        traces.append(bars(name, color, [q.plural(point.n_prompts, "prompt")], [seen], [hover]))
    up = seconds("to the first token: half of the requests, and a line to nine in ten")
    return View(f"{point.model}, {point.name}", traces, plain("", type="category"), up)
