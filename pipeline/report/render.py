"""From records to the files of the report, all in memory before the first one is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report import context, drawing, evidence, figures, ranking, sentences, tables
from pipeline.report.evidence import Row, Setting, group
from pipeline.report.tables import Table

REPORT = "report.md"
FIGURES = "figures"
Names = Mapping[tuple[str, str], str]
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
    details: list[tuple[str, Table]]
    rankings: list[ranking.Ranking]
    pictures: list[Picture]


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


class Renderer:
    """Holds what the parts share: names, titles, and the figures drawn so far."""

    def __init__(self, rows: Sequence[Row], reports_dir: Path):
        self.rows = rows
        self.reports_dir = reports_dir
        self.titles = evidence.titles(row.setting for row in rows)
        self.slugs = evidence.slugs(row.setting for row in rows)
        self.files: Files = {}

    def levels(self) -> list[Level]:
        return [self._level(name, rows) for name, rows in group(self.rows, lambda row: row.cell.level).items()]

    def _level(self, name: str, rows: Sequence[Row]) -> Level:
        parts = [
            self._comparison(setting, members) for setting, members in group(rows, lambda row: row.setting).items()
        ]
        described = _by_strategy(rows) if name != "benchmark" else []  # the same techniques as at token level
        techniques = [self._technique(strategy, own) for strategy, own in group(described, _strategy).items()]
        return Level(sentences.level_title(name), parts, techniques)

    def _comparison(self, setting: Setting, rows: Sequence[Row]) -> Part:
        names = evidence.labels(rows)
        return Part(
            self.titles[setting],
            sentences.headlines(rows, names),
            list(_comparison_tables(rows, names, self.reports_dir)),
            [],
            ranking.rankings(rows, names),
            self._pictures(setting, figures.of_setting(rows, names)),
        )

    def _technique(self, strategy: str, rows: Sequence[Row]) -> Technique:
        described = rows[0].config("strategy")
        settings = group(rows, lambda row: row.setting)
        return Technique(
            strategy,
            str(described.get("title") or strategy),
            str(described.get("summary") or ""),
            sentences.paper(str(described.get("paper") or "")),
            sentences.status(rows),
            context.configuration(rows),
            [self._technique_part(setting, members) for setting, members in settings.items()],
        )

    def _technique_part(self, setting: Setting, rows: Sequence[Row]) -> Part:
        shown = [
            (f"Cost, as ratios to {setting.reference}", tables.technique_cost(rows, self.reports_dir)),
            ("Held-out text", tables.technique_text(rows, self.reports_dir)),
        ]
        hidden = [
            ("Times, budgets and memory, beside the measured ceilings", tables.technique_time(rows, self.reports_dir)),
            *(
                (f"Recall at {sentences.point(row)}, task by task", tables.technique_recall(row, self.reports_dir))
                for row in rows
            ),
        ]
        pictures = self._pictures(setting, figures.of_technique(rows))
        return Part(self.titles[setting], sentences.assessment(rows), _filled(shown), _filled(hidden), [], pictures)

    def _pictures(self, setting: Setting, drawn: figures.Drawn) -> list[Picture]:
        pictures = []
        for name, text, content in drawn:
            path = f"{FIGURES}/{name}-{self.slugs[setting]}"
            self.files |= {f"{path}.{suffix}": data for suffix, data in drawing.save(content).items()}
            pictures.append(Picture(path, text))
        return pictures


def render(results_dir: Path, reports_dir: Path) -> Files:
    """Raises ValueError where a record or the gates file is corrupt or there are no records."""
    rows = evidence.load(results_dir)
    gates = _gates(results_dir / "gates.json")
    renderer = Renderer(rows, reports_dir)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    failed = [row for row in rows if row.record.status != "ok"]
    text = environment.get_template("template.md.j2").render(
        statement=sentences.statement(rows),
        how_to_read=sentences.how_to_read(),
        environment=context.environment(rows),
        grid=context.grid(rows),
        levels=renderer.levels(),
        gates=context.gates(gates) if gates else None,
        not_measured=context.not_measured(failed, reports_dir) if failed else None,
    )
    return {REPORT: text.encode(), **renderer.files}


def write(files: Mapping[str, bytes], reports_dir: Path) -> None:
    """Write them all; figures of settings and techniques that have no records any more go."""
    for old in (reports_dir / FIGURES).glob("*.*"):
        if f"{FIGURES}/{old.name}" not in files and old.suffix in {".svg", ".png"}:
            old.unlink()
    for name, content in files.items():
        path = reports_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _comparison_tables(rows: Sequence[Row], names: Names, reports_dir: Path) -> Iterator[tuple[str, Table]]:
    for members in group(
        sorted(rows, key=lambda row: (row.cell.batch, row.cell.seq_len)), lambda row: row.point
    ).values():
        where = sentences.point(members[0])
        if any(row.record.cost for row in members):
            yield f"Cost at {where}", tables.summary_cost(members, names, reports_dir)
        if any(row.record.quality and row.record.quality.tasks for row in members):
            heading = f"Recall accuracy ({' / '.join(tables.PROTOCOL.values())}) at {where}"
            yield heading, tables.summary_recall(members, names, reports_dir)
        if any(row.record.quality and row.record.quality.text for row in members):
            yield f"Held-out text at {where}", tables.summary_text(members, names, reports_dir)


def _filled(found: Sequence[tuple[str, Table]]) -> list[tuple[str, Table]]:
    return [(heading, table) for heading, table in found if table.rows]


def _strategy(row: Row) -> str:
    return row.strategy


def _by_strategy(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.strategy != evidence.BASELINE, row.strategy))


def _gates(path: Path) -> list[dict[str, Any]]:
    """The requirements on the trained model, if its stage has run: a list, or a mapping that holds one as `gates`."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        return [dict(gate) for gate in (found["gates"] if isinstance(found, dict) else found)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"corrupt {path}: {error!r}; delete the file and run the gates again") from None
