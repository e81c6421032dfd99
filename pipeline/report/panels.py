"""A grid of small panels on shared axes: lines that would lie over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.drawing import Mark, figure

COLUMNS = 4
ROW_IN = 1.55
AROUND_IN = 0.55  # titles and the label of an axis


def grid(titles: Sequence[tuple[str, Mark]], x: str, y: str) -> tuple[Figure, list[Axes]]:
    """A panel for each title, in its colour; places that are left over stay empty."""
    n_rows = math.ceil(len(titles) / COLUMNS)
    canvas = figure(AROUND_IN + ROW_IN * n_rows)
    places = list(canvas.subplots(n_rows, COLUMNS, squeeze=False, sharex=True, sharey=True).flat)
    for index, axes in enumerate(places):
        if index >= len(titles):
            axes.set_visible(False)
        else:
            axes.set_title(titles[index][0], color=titles[index][1].color)
            axes.tick_params(labelbottom=index + COLUMNS >= len(titles))  # the lowest of its column
    canvas.supxlabel(x, fontsize=10)
    canvas.supylabel(y, fontsize=10)
    return canvas, places[: len(titles)]
