"""What a reader has to know about the records as a whole: what lacks, and what stands apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.findings import evidence
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group

SEVERAL = "Several machines"  # the section that compares them


def notes(rows: Sequence[Row]) -> list[str]:
    """`rows` are those of techniques, which are compared with a baseline."""
    return [*_machines(rows), *_without_baseline(rows)]


def _machines(rows: Sequence[Row]) -> Iterator[str]:
    machines = list(dict.fromkeys(row.hardware_id for row in rows))
    if len(machines) > 1:
        names = q.words(f"`{name}`" for name in machines)
        yield (
            f"Records of {q.plural(len(machines), 'machine')}, {names}: each stands in tables of its own, and "
            f"[{SEVERAL.lower()}](#{evidence.slug(SEVERAL).lower()}) says how far they agree."
        )


def _without_baseline(rows: Sequence[Row]) -> Iterator[str]:
    settings = group(rows, lambda row: row.setting)
    titles = evidence.titles(settings)
    for setting, members in settings.items():
        if not any(row.strategy == setting.baseline and row.record.status == "ok" for row in members):
            yield (
                f"No record of `{setting.baseline}` itself on {titles[setting]} (level {setting.level}): ratios and "
                "differences are to it all the same, as it ran beside each technique, but its own rows are missing."
            )
