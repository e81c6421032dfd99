"""What tests of the report share."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.report import drawing


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who asks what is said: figures are made, laid out and named, but one pixel instead of drawn, the slow part.

    That each kind can be drawn and opens is asked where nothing is replaced.
    """
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")

    def save_all(figures: Sequence[Figure]) -> list[dict[str, bytes]]:
        for figure in figures:
            drawing.place(figure)
        return [{"png": pixel.getvalue(), "svg": b"<svg/>"} for _ in figures]

    monkeypatch.setattr(drawing, "save_all", save_all)
