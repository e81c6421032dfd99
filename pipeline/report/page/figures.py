"""Which pictures of the report have a chart in the page, by the path of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.findings import evidence
from pipeline.findings.evidence import ABLATION, MODEL, Row, Setting, group, slug
from pipeline.report.models import architectures
from pipeline.report.page import ceilings as page_ceilings
from pipeline.report.page import cost as page_cost
from pipeline.report.page import levels as page_levels
from pipeline.report.page import quality as page_quality
from pipeline.report.page.charts import Chart
from pipeline.report.parts import FIGURES
from pipeline.report.system import engines
from pipeline.report.tokens import tradeoff

Found = Iterator[tuple[str, Chart]]


def charts(
    compared: Sequence[Row], of: Callable[[str], Sequence[Row]], slugs: Mapping[Setting, str]
) -> dict[str, Chart]:
    """From the rows that the pictures are drawn from: those `compared` as techniques, and those `of` other levels."""
    found = dict(_of_settings(compared, slugs))
    for rows in group(compared, lambda row: row.cell.level).values():
        found.update(_of_tradeoffs(rows, slugs))
    for setting, rows in group(of(ABLATION), lambda row: row.setting).items():
        found.update(_placed(page_quality.of_budgets(rows), slugs[setting]))
    for level, setting_of, draw in (
        (MODEL, architectures.setting_of, page_levels.of_models),
        (engines.ENGINE, engines.setting_of, page_levels.of_engines),
    ):
        parted = group(of(level), setting_of)
        own = evidence.slugs(parted)
        for setting, rows in parted.items():
            found.update(_placed(draw(rows), own[setting]))
    return found


def _of_settings(rows: Sequence[Row], slugs: Mapping[Setting, str]) -> Found:
    for setting, members in group(rows, lambda row: row.setting).items():
        named = evidence.labels(members)
        if timed := _timed(members):
            found = page_cost.of_setting(timed, named) | page_ceilings.roofline(timed, named)
            yield from _placed(found, slugs[setting])
        if judged := _judged(members):
            yield from _placed(page_quality.of_setting(judged, named), slugs[setting])
        for strategy, own in group(members, lambda row: row.strategy).items():
            yield from _placed(_of_technique(own, slug(strategy)), slugs[setting])


def _of_tradeoffs(rows: Sequence[Row], slugs: Mapping[Setting, str]) -> Found:
    for setting, both in tradeoff.tradeoffs(rows):
        yield from _placed(page_ceilings.speed_quality(both), slugs[setting])


def _of_technique(rows: Sequence[Row], name: str) -> dict[str, Chart]:
    timed, judged = _timed(rows), _judged(rows)
    found = {f"{name}-cost": page_cost.of_technique(timed)} if timed else {}
    return found | ({f"{name}-recall": page_quality.of_technique(judged)} if judged else {})


def _placed(found: Mapping[str, Chart], where: str) -> Found:
    return ((f"{FIGURES}/{name}-{where}", chart) for name, chart in found.items())


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.cost]


def _judged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality]
