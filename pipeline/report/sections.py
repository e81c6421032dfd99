"""The sections beside the token level's: each from its own rows or file, on each machine that has some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.findings import evidence
from pipeline.findings.evidence import Row, Setting, group
from pipeline.layout import read_all as read_layouts
from pipeline.memory.production import read as read_production
from pipeline.report.memory import layout, production, production_plots, serving, serving_plots, serving_sentences
from pipeline.report.models import architectures, reach, uptraining
from pipeline.report.models import plots as model_plots
from pipeline.report.models import sentences as model_sentences
from pipeline.report.models import tables as model_level
from pipeline.report.parts import Gallery, Part
from pipeline.report.study import plots as study_plots
from pipeline.report.study import repeated as study
from pipeline.report.system import engine_plots, engine_sentences, engines, weight_plots, weights
from pipeline.report.tokens import tradeoff, tradeoff_plots
from pipeline.serving.results import read as read_serving


def of_tradeoffs(rows: Sequence[Row], slugs: dict[Setting, str], gallery: Gallery) -> list[Part]:
    """Time against quality, on each machine that measured both."""
    found = list(tradeoff.tradeoffs(rows))
    return [
        Part(
            tradeoff.title(both) + (f", machine `{setting.hardware_id}`" if len(found) > 1 else ""),
            tradeoff.sentences(both),
            [("Techniques by both verdicts", tradeoff.table(both))],
            pictures=gallery.hang(tradeoff_plots.drawn(both), slugs[setting]),
        )
        for setting, both in found
    ]


def of_study(rows: Sequence[Row], slugs: dict[Setting, str], gallery: Gallery) -> list[Part]:
    """An earlier study beside its repetition, for each model and machine that repeated it."""
    settings = group(rows, lambda row: replace(row.setting, workload="", n_new_tokens=0))
    parts = []
    for setting, members in settings.items():
        found = study.repeated(members)
        parts.append(
            Part(
                f"model `{setting.model}` ({setting.dtype}, {setting.device}), machine `{setting.hardware_id}`",
                study.sentences(found),
                [*study.tables(found), *study.rankings(found)],
                list(study.details(found)),
                pictures=gallery.hang(study_plots.drawn(found), slugs[members[0].setting]),
            )
        )
    return parts


def of_models(rows: Sequence[Row], gallery: Gallery, reports_dir: Path) -> list[Part]:
    """Trained architectures beside the reference, on each machine that measured them."""
    parts = []
    for setting, slug, members in _by_setting(rows, architectures.setting_of):
        found = architectures.architectures(members)
        parts.append(
            Part(
                architectures.title(setting),
                model_sentences.sentences(found),
                [*model_level.tables(found), *uptraining.tables(found), *reach.tables(found)],
                list(model_level.details(found, reports_dir)),
                pictures=gallery.hang(model_plots.drawn(found), slug),
            )
        )
    return parts


def of_weights(rows: Sequence[Row], gallery: Gallery, reports_dir: Path) -> list[Part]:
    """Ways of holding weights beside plain ones, on each machine that measured them."""
    parts = []
    for setting, slug, members in _by_setting(rows, weights.setting_of):
        found = weights.places(members)
        parts.append(
            Part(
                weights.title(setting),
                weights.sentences(found),
                list(weights.tables(found, reports_dir)),
                pictures=gallery.hang(weight_plots.drawn(found), slug),
            )
        )
    return parts


def of_engines(rows: Sequence[Row], gallery: Gallery, reports_dir: Path) -> list[Part]:
    """vLLM, Transformers and our own loop on the same requests, on each machine that measured them."""
    return [
        Part(
            engines.title(setting),
            engine_sentences.sentences(members),
            list(engines.tables(members, reports_dir)),
            pictures=gallery.hang(engine_plots.drawn(members), slug),
        )
        for setting, slug, members in _by_setting(rows, engines.setting_of)
    ]


def of_serving(results_dir: Path, gallery: Gallery) -> Part | None:
    """How many sequences a memory serves, of no machine: nothing was timed."""
    found = read_serving(results_dir)
    if found is None:
        return None
    pictures = gallery.hang(serving_plots.drawn(found))
    return Part("Serving", serving_sentences.sentences(found), serving.tables(found), pictures=pictures)


def of_layouts(results_dir: Path) -> list[Part]:
    """What the order of keys and values in memory costs on each machine that measured it."""
    return [
        Part(layout.title(found), layout.sentences(found), layout.tables(found)) for found in read_layouts(results_dir)
    ]


def of_production(results_dir: Path, gallery: Gallery) -> Part | None:
    """What caches take at production scale, of no machine: nothing was measured."""
    found = read_production(results_dir)
    if found is None:
        return None
    pictures = gallery.hang(production_plots.drawn(found))
    return Part("Production scale", production.sentences(found), production.tables(found), pictures=pictures)


def _by_setting(
    rows: Sequence[Row], setting_of: Callable[[Row], Setting]
) -> Iterator[tuple[Setting, str, Sequence[Row]]]:
    """What may stand in one part, and how its files are called."""
    settings = group(rows, setting_of)
    slugs = evidence.slugs(settings)
    yield from ((setting, slugs[setting], members) for setting, members in settings.items())
