"""The figure of caches at production scale: one bar for each way to hold a prompt."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from pipeline.findings import quantities as q
from pipeline.memory.production import Production
from pipeline.report import captions
from pipeline.report.drawing import INK, PALETTE, REFERENCE, figure, style

TICKS = 5  # about so many


def drawn(found: Production) -> list[tuple[str, str, Figure]]:
    """File name, alternative text, figure."""
    asked = found.plan.scenarios
    kept = {point.title: float(point.kept) for point in found.scenarios}
    where = f"{asked.title} at {q.count(asked.seq_len)} tokens"
    text = f"keys and values of {where}, computed, by how they are held: {captions.span(kept, q.data)}"
    with style():
        return [("production", text, _bars(found))]


def _bars(found: Production) -> Figure:
    """From zero, so that lengths can be compared; the first bar is what the others are shares of."""
    points, asked = found.scenarios, found.plan.scenarios
    drawn = figure(1.2 + 0.4 * len(points))
    axes = drawn.subplots()
    places = range(len(points))
    axes.barh(places, [point.kept for point in points], 0.62, color=[REFERENCE, *[PALETTE[0]] * (len(points) - 1)])
    for place, point in enumerate(points):
        label = f"{q.data(point.kept)}, {q.share(point.kept / points[0].kept)}"
        axes.annotate(label, (point.kept, place), (4, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(places, [point.title for point in points])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    most = max(point.kept for point in points)
    axes.set_xlim(0, 1.3 * most)  # room for what is written beside the longest
    axes.xaxis.set_major_locator(MultipleLocator(2 ** ((most // TICKS).bit_length() - 1)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.tick(q.data(value)) if value else "0"))
    axes.set_xlabel(f"keys and values of one sequence of {q.count(asked.seq_len)} tokens, {asked.title}, computed")
    return drawn
