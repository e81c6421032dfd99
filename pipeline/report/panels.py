"""A grid of small panels, one for each architecture, on shared axes: lines that would lie over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.architectures import Architecture
from pipeline.report.drawing import Mark, architecture_mark, figure

COLUMNS = 4
ROW_IN = 1.55
AROUND_IN = 0.55  # titles and the label of an axis


def look(one: Architecture) -> Mark:
    return architecture_mark(one.name, is_reference=one.is_reference)


def panels(found: Sequence[Architecture], x: str, y: str) -> tuple[Figure, list[tuple[Axes, Architecture]]]:
    """Titles in the colour of the architecture; places that are left over stay empty."""
    n_rows = math.ceil(len(found) / COLUMNS)
    canvas = figure(AROUND_IN + ROW_IN * n_rows)
    grid = canvas.subplots(n_rows, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, one in zip(grid, found, strict=False):
        axes.set_title(one.name, color=look(one).color)
    for index, axes in enumerate(grid):
        if index >= len(found):
            axes.set_visible(False)
        elif index + COLUMNS >= len(found):  # the lowest of its column
            axes.tick_params(labelbottom=True)
    canvas.supxlabel(x, fontsize=10)
    canvas.supylabel(y, fontsize=10)
    return canvas, list(zip(grid, found, strict=False))
