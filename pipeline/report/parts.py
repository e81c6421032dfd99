"""What the template shows: parts with their sentences, tables and pictures; and where the pictures are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from pipeline.report import drawing
from pipeline.report.ranking import Ranking
from pipeline.report.tables import Table

FIGURES = "figures"
Files = dict[str, bytes]  # path below the reports directory -> content


@dataclass(frozen=True)
class Picture:
    """One figure as the template shows it: `path` without suffix."""

    path: str
    text: str


@dataclass(frozen=True)
class Part:
    """What one setting says, about all techniques or about one; tables are (heading, table)."""

    title: str
    sentences: list[str]
    tables: list[tuple[str, Table]]
    details: list[tuple[str, Table]] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Technique:
    name: str
    title: str
    summary: str
    paper: str
    status: str
    configuration: Table
    parts: list[Part]


@dataclass(frozen=True)
class Level:
    title: str
    parts: list[Part]
    techniques: list[Technique]


@dataclass(frozen=True)
class Gallery:
    """The figures so far, by their paths without suffix."""

    figures: dict[str, Figure] = field(default_factory=dict)

    def hang(self, drawn: Iterable[tuple[str, str, Figure]], slug: str = "") -> list[Picture]:
        """(file name, alternative text, figure) each; `slug` says of which setting."""
        pictures = []
        for name, text, content in drawn:
            path = f"{FIGURES}/{name}-{slug}" if slug else f"{FIGURES}/{name}"
            self.figures[path] = content
            pictures.append(Picture(path, text))
        return pictures

    def files(self) -> Files:
        saved = drawing.save_all(list(self.figures.values()))
        return {
            f"{path}.{suffix}": data
            for path, content in zip(self.figures, saved, strict=True)
            for suffix, data in content.items()
        }
