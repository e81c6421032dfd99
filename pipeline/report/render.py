"""From records to the files of the report, all in memory before the first one is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import bars, judgement
from pipeline.findings import evidence
from pipeline.findings.evidence import ABLATION, MODEL, SYSTEM, Row, Setting, group
from pipeline.findings.means import PROTOCOL, differs
from pipeline.report import context, judged, machines, notes, ranking, reading, sections, sentences
from pipeline.report.ablations import parts as ablations
from pipeline.report.advice import use_cases as advice
from pipeline.report.benchmark import against_bars
from pipeline.report.benchmark import page as benchmarks
from pipeline.report.benchmark.points import is_benchmark
from pipeline.report.claims import pages as claim_pages
from pipeline.report.contents import with_contents
from pipeline.report.page import figures as page_figures
from pipeline.report.page import render as page
from pipeline.report.parts import FIGURES, Files, Gallery, Level, Part, Picture, Technique
from pipeline.report.system.engines import ENGINE
from pipeline.report.tables import Table
from pipeline.report.tokens import crossing, figures, headlines
from pipeline.report.tokens import sentences as token_sentences
from pipeline.report.tokens import tables as token_tables
from pipeline.study import LEVEL as STUDY

REPORT = "report.md"
SECTIONS = (ABLATION, STUDY, MODEL, SYSTEM, ENGINE)  # levels that have a section of their own
Names = Mapping[tuple[str, str], str]


class Renderer:
    """Holds what the parts share: names, titles, and the figures drawn so far."""

    def __init__(self, rows: Sequence[Row], reports_dir: Path):
        self.all = list(rows)
        self.rows = [row for row in rows if row.cell.level not in SECTIONS]
        self.reports_dir = reports_dir
        self.titles = evidence.titles(row.setting for row in rows)
        self.slugs = evidence.slugs(row.setting for row in rows)
        self.gallery = Gallery()
        # Of several machines one has figures in detail and of single techniques; those that compare, all have.
        self.pictured = Counter(row.hardware_id for row in self.rows).most_common(1)[0][0] if self.rows else ""

    def of(self, level: str) -> list[Row]:
        return [row for row in self.all if row.cell.level == level]

    def levels(self) -> list[Level]:
        return [self._level(name, rows) for name, rows in group(self.rows, lambda row: row.cell.level).items()]

    def _level(self, name: str, rows: Sequence[Row]) -> Level:
        parts = [
            self._comparison(setting, members) for setting, members in group(rows, lambda row: row.setting).items()
        ]
        parts += sections.of_tradeoffs(rows, self.slugs, self.gallery)
        techniques = [self._technique(strategy, own) for strategy, own in group(_by_strategy(rows), _strategy).items()]
        return Level(f"{name.capitalize()} level", parts, techniques)

    def ablations(self) -> list[Level]:
        """One for each setting; a point of an ablation is no technique of its own, and in no ranking."""
        return [
            Level(f"Ablations: {self.titles[setting]}", self._ablations(setting, members), [])
            for setting, members in group(self.of(ABLATION), lambda row: row.setting).items()
        ]

    def _ablations(self, setting: Setting, rows: Sequence[Row]) -> list[Part]:
        found = ablations.ablations(rows, self.reports_dir)
        return [
            Part(own.title, own.sentences, own.tables, own.details, [], self._pictures(setting, own.drawn))
            for own in found
        ]

    def _comparison(self, setting: Setting, rows: Sequence[Row]) -> Part:
        names = evidence.labels(rows)
        return Part(
            self.titles[setting],
            token_sentences.once(rows),
            [],
            list(_comparison_tables(rows, names, self.reports_dir)),
            ranking.rankings(rows, names),
            self._pictures(setting, figures.of_setting(rows, names, in_detail=setting.hardware_id == self.pictured)),
        )

    def in_short(self) -> list[Part]:
        """Of each machine and level the cost and the quality where most techniques were measured, one table each."""
        parts = []
        for rows in group(self.rows, lambda row: (row.hardware_id, row.cell.level)).values():
            timed = [row for row in rows if row.record.cost]
            judged = [row for row in rows if row.record.quality and row.in_trained_length]
            for setting in dict.fromkeys(headlines.largest(found) for found in (timed, judged) if found):
                parts.append(self._short(setting, [row for row in rows if row.setting == setting]))
        return parts

    def _short(self, setting: Setting, rows: Sequence[Row]) -> Part:
        names = evidence.labels(rows)
        return Part(
            self.titles[setting],
            [*token_sentences.once(headlines.costs(rows)), *token_sentences.headlines(rows, names)],
            list(_short_tables(rows, names)),
        )

    def _technique(self, strategy: str, rows: Sequence[Row]) -> Technique:
        described = rows[0].config("strategy")
        settings = group(rows, lambda row: row.setting)
        return Technique(
            evidence.label(strategy),
            token_sentences.technique_title(rows[0]),
            str(described.get("summary") or ""),
            sentences.paper(str(described.get("paper") or "")),
            sentences.status(rows),
            context.configuration(rows),
            [self._technique_part(setting, members) for setting, members in settings.items()],
        )

    def _technique_part(self, setting: Setting, rows: Sequence[Row]) -> Part:
        shown = [
            (f"Cost, as ratios to {setting.reference}", token_tables.technique_cost(rows, self.reports_dir)),
            ("Held-out text", token_tables.technique_text(rows, self.reports_dir)),
        ]
        hidden = [
            ("Times, budgets and memory", token_tables.technique_time(rows)),
            ("Beside the measured ceilings", token_tables.technique_ceilings(rows)),
            ("Beside the measured link from the host", crossing.of_technique(rows)),
            *(
                (f"Recall at {sentences.point(r)}, task by task", token_tables.technique_recall(r))
                for r in rows
                if differs(r)
            ),
        ]
        pictures = self._pictures(setting, figures.of_technique(rows)) if setting.hardware_id == self.pictured else []
        return Part(
            self.titles[setting], token_sentences.assessment(rows), _filled(shown), _filled(hidden), [], pictures
        )

    def _pictures(self, setting: Setting, drawn: figures.Drawn) -> list[Picture]:
        return self.gallery.hang(drawn, self.slugs[setting])


def render(results_dir: Path, reports_dir: Path) -> Files:
    """Raises ValueError where a record or another file of results is corrupt, or there are no records."""
    found, plan = evidence.load(results_dir), bars.load()
    rows = [row for row in found if not is_benchmark(row)]
    written = judgement.read(results_dir)
    renderer = Renderer(rows, reports_dir)
    claims = claim_pages.judgement(found, results_dir)
    gallery = renderer.gallery
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    failed = [row for row in found if row.record.status != "ok"]
    text = environment.get_template("template.md.j2").render(
        statement=reading.statement(found),
        machines=context.machines(found),
        notes=notes.notes(renderer.rows),
        in_short=renderer.in_short(),
        advice=advice.advised(found, reports_dir),
        claims=claim_pages.summary(claims),
        how_to_read=[*reading.how_to_read(), *reading.what_is_drawn(renderer.rows, renderer.pictured)],
        environment=context.environment(found),
        grid=context.grid(found),
        levels=renderer.levels(),
        models=sections.of_models(renderer.of(MODEL), gallery, reports_dir),
        ablations=renderer.ablations(),
        benchmark=benchmarks.summary(found, plan),
        bars_at=against_bars.where(plan),
        weights=sections.of_weights(renderer.of(SYSTEM), gallery, reports_dir),
        engines=sections.of_engines(renderer.of(ENGINE), gallery, reports_dir),
        serving=sections.of_serving(results_dir, gallery),
        layouts=sections.of_layouts(results_dir),
        production=sections.of_production(results_dir, gallery),
        study=sections.of_study(renderer.of(STUDY), renderer.slugs, gallery),
        gates=judged.gates(written.gates) if written else None,
        kept=judged.kept(written.kept) if written else [],
        why_recalled=judged.explanation(written.kept) if written else [],
        beside=machines.parts(found),
        not_measured=context.not_measured(failed, reports_dir) if failed else None,
    )
    pages = {REPORT: with_contents(text).encode(), **benchmarks.render(found, environment, reports_dir, plan)}
    pages |= claim_pages.render(claims, environment, reports_dir)
    files = {**pages, **gallery.files()}
    charts = page_figures.charts(renderer.rows, renderer.of, renderer.slugs)
    return {**files, page.PAGE: page.build(files, charts, environment), **headlines.metrics(rows)}


def write(files: Mapping[str, bytes], reports_dir: Path) -> None:
    """Write them all; figures and metrics of settings and techniques that have no records any more go."""
    ours = ((FIGURES, "*.svg"), (FIGURES, "*.png"), (headlines.FOLDER, "*/*.json"))
    for old in (path for folder, pattern in ours for path in (reports_dir / folder).glob(pattern)):
        if old.relative_to(reports_dir).as_posix() not in files:
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
            yield f"Cost at {where}", token_tables.summary_cost(members, names, reports_dir)
        if any(row.record.quality and row.record.quality.tasks for row in members):
            heading = f"Recall accuracy ({' / '.join(PROTOCOL.values())}) at {where}"
            yield heading, token_tables.summary_recall(members, names, reports_dir)
        if any(row.record.quality and row.record.quality.text for row in members):
            yield f"Held-out text at {where}", token_tables.summary_text(members, names, reports_dir)


def _short_tables(rows: Sequence[Row], names: Names) -> Iterator[tuple[str, Table]]:
    """One point each, at which most techniques stand beside each other; for quality within the trained length."""
    if timed := headlines.costs(rows):
        yield f"Cost at {sentences.point(timed[0])}", token_tables.summary_cost(timed, names)
    if judged := headlines.qualities(rows):
        yield f"Quality at {sentences.point(judged[0])}", token_tables.summary_quality(judged, names)


def _filled(found: Sequence[tuple[str, Table]]) -> list[tuple[str, Table]]:
    return [(heading, table) for heading, table in found if table.rows]


def _strategy(row: Row) -> str:
    return row.strategy


def _by_strategy(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.strategy != evidence.BASELINE, row.strategy))
