"""A panel for each architecture, in its mark."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.drawing import Mark, architecture_mark
from pipeline.report.models.architectures import Architecture
from pipeline.report.panels import grid


def look(one: Architecture) -> Mark:
    return architecture_mark(one.name, is_reference=one.is_reference)


def panels(found: Sequence[Architecture], x: str, y: str) -> tuple[Figure, list[tuple[Axes, Architecture]]]:
    canvas, places = grid([(one.name, look(one)) for one in found], x, y)
    return canvas, list(zip(places, found, strict=True))
