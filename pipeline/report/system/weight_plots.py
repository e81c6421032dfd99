"""Figures of weights: bytes by component and time beside plain weights, and what quality the bytes leave."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, slug
from pipeline.record import Interval
from pipeline.report import captions
from pipeline.report.drawing import PALETTE, REFERENCE, error_bars, figure, style
from pipeline.report.models.architectures import text
from pipeline.report.models.training_plots import Drawn
from pipeline.report.scales import ratio_axis
from pipeline.report.system import weights
from pipeline.report.system.weights import Place

PARTS = {"quantised layers": PALETTE[0], "other layers": PALETTE[4], "embeddings and head": "#BBBBBB"}
ROW_IN = 0.32
AROUND_IN = 1.1


def drawn(found: Sequence[Place]) -> Drawn:
    pictures: Drawn = []
    with style():
        for place in found:
            own = slug(f"{place.model}-{place.workload}-t{place.seq_len}-b{place.batch}")
            if len(place.timed) > 1:
                text_of = f"bytes and times by weights, {_plain(place)}: {_costs(place.timed)}"
                pictures.append((f"weights_cost-{own}", text_of, _cost(place)))
            if len([row for row in place.judged if text(row)]) > 1:
                pictures.append((f"weights_quality-{own}", f"quality by weights, {_losses(place)}", _quality(place)))
    return pictures


def _plain(place: Place) -> str:
    return place.where.replace("`", "")


def _costs(rows: Sequence[Row]) -> str:
    timed = {weights.name(row): row.record.cost for row in rows if row.record.cost}
    held = {name: float(sum(cost.technique.weight_bytes.values())) for name, cost in timed.items()}
    steps = {name: cost.tpot_ratio.estimate for name, cost in timed.items()}
    return f"{captions.span(held, q.data)}; decode step over plain weights {captions.span(steps, q.ratio)}"


def _losses(place: Place) -> str:
    found = {weights.name(row): own.nll_difference.estimate for row in place.judged if (own := text(row))}
    said = captions.span(found, lambda value: f"{q.signed(value, 3)} nats")
    return f"{_plain(place)}: loss on text beside plain weights {said}"


def _cost(place: Place) -> Figure:
    rows = place.timed[::-1]  # bars are drawn from below
    canvas = figure(AROUND_IN + ROW_IN * len(rows))
    left, middle, right = canvas.subplots(1, 3, sharey=True, width_ratios=(1.3, 1, 1))
    _stacked(left, rows)
    costs = [row.record.cost for row in rows if row.record.cost]
    _ratios(middle, rows, [cost.ttft_ratio for cost in costs], "first token over plain weights")
    _ratios(right, rows, [cost.tpot_ratio for cost in costs], "decode step over plain weights")
    left.set_yticks(range(len(rows)), [weights.name(row) for row in rows])
    canvas.suptitle(_plain(place), fontsize=10, x=0.01, ha="left")
    return canvas


def _stacked(axes: Axes, rows: Sequence[Row]) -> None:
    start = [0.0] * len(rows)
    for part, color in PARTS.items():
        own = [float(row.record.cost.technique.weight_bytes.get(part, 0)) for row in rows if row.record.cost]
        axes.barh(range(len(rows)), own, left=start, color=color, label=part, height=0.7)
        start = [before + more for before, more in zip(start, own, strict=True)]
    axes.set_xlim(0, 1.02 * max(start))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.data(value)) if value else "0"))
    axes.xaxis.set_major_locator(_even(max(start)))
    axes.set_title("bytes of weights")
    axes.grid(axis="y", visible=False)
    axes.figure.legend(loc="outside lower left", ncols=3)


def _even(most: float) -> MultipleLocator:
    """A power of two of bytes, three to five times."""
    return MultipleLocator(2.0 ** max(0, (int(most) // 3).bit_length() - 1))


def _ratios(axes: Axes, rows: Sequence[Row], ratios: Sequence[Interval], title: str) -> None:
    axes.axvline(1, color=REFERENCE, linewidth=1)
    for at, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        color = REFERENCE if weights.is_plain(row) else PALETTE[0]
        axes.errorbar(ratio.estimate, at, xerr=error_bars([ratio]), color=color, marker="o", ms=5, capsize=2)
    ratio_axis(axes, "x", [end for ratio in ratios for end in (ratio.low, ratio.high, 1.0)])
    axes.set_title(title)
    axes.grid(axis="y", visible=False)


def _quality(place: Place) -> Figure:
    rows = [row for row in place.judged[::-1] if text(row)]
    canvas = figure(AROUND_IN - 0.2 + ROW_IN * len(rows))
    left, right = canvas.subplots(1, 2, sharey=True)
    gains = [(at, weights.recall(row)) for at, row in enumerate(rows)]
    _differences(left, rows, [(at, own.difference) for at, own in gains if own], "recall beside plain weights")
    losses = [(at, own.nll_difference) for at, row in enumerate(rows) if (own := text(row))]
    _differences(right, rows, losses, "loss on text beside plain weights, nats")
    left.set_yticks(range(len(rows)), [weights.name(row) for row in rows])
    canvas.suptitle(_plain(place), fontsize=10, x=0.01, ha="left")
    return canvas


def _differences(axes: Axes, rows: Sequence[Row], found: Sequence[tuple[int, Interval]], title: str) -> None:
    axes.axvline(0, color=REFERENCE, linewidth=1)
    for at, value in found:
        color = REFERENCE if weights.is_plain(rows[at]) else PALETTE[0]
        axes.errorbar(value.estimate, at, xerr=error_bars([value]), color=color, marker="o", ms=5, capsize=2)
    axes.set_title(title)
    axes.grid(axis="y", visible=False)
