"""reports/benchmarks.md: every technique beside the cache that a model uses by default, judged by its bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from pipeline import bars
from pipeline.bars import MISSED, NOISE, REPORTED, Judged, Plan
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group
from pipeline.report import context
from pipeline.report.benchmark import against_bars, figures, lengths, points
from pipeline.report.parts import Files, Gallery, Picture
from pipeline.report.tables import Table
from pipeline.report.tokens import crossing

PAGE = "benchmarks.md"


@dataclass(frozen=True)
class Machine:
    """What the template shows of one machine; `missed` and the other sentences may be empty."""

    name: str
    facts: str
    summary: str
    bars: Table
    sizes: Table
    missed: list[str]
    break_even: Table
    predicted: Table
    crossing: Table
    peaks: Table
    peaks_said: str
    seen: Table
    seen_said: str
    points_said: list[str]
    points: list[tuple[str, Table]]
    pictures: list[Picture]


def render(rows: Sequence[Row], environment: Environment, reports_dir: Path, plan: Plan) -> Files:
    """The page and its figures; empty where nothing was benchmarked."""
    gallery = Gallery()
    machines = [
        _machine(name, members, reports_dir, plan, gallery)
        for name, members in group(rows, lambda row: row.hardware_id).items()
        if any(points.is_benchmark(row) for row in members)
    ]
    if not machines:
        return {}
    text = environment.get_template("benchmark/benchmarks.md.j2").render(
        machines=machines, at=against_bars.where(plan), met=bars.MET, missed=MISSED, noise=NOISE, reported=REPORTED,
        one_trial=bars.ONE_TRIAL.strip(), linear=q.share(lengths.LINEAR),
    )  # fmt: skip
    return {PAGE: text.encode(), **gallery.files()}


def summary(rows: Iterable[Row], plan: Plan) -> list[str]:
    """For each machine how many bars are met, and on a GPU what was measured in place of them."""
    machines = group(filter(points.is_benchmark, rows), lambda row: row.hardware_id)
    return [
        f"Machine `{name}`: {line}"
        for name, members in machines.items()
        for line in _in_short(against_bars.judged(members, plan), points.said(members))
    ]


def _in_short(judged: Sequence[Judged], said: Sequence[str]) -> list[str]:
    return [against_bars.counted(judged), *said] if judged or not said else list(said)


def _machine(name: str, rows: Sequence[Row], reports_dir: Path, plan: Plan, gallery: Gallery) -> Machine:
    own = [row for row in rows if points.is_benchmark(row)]
    against = [row for row in own if row.cell.workload == bars.AGAINST]
    seen = [row for row in own if row.cell.workload == bars.SEEN and row.record.cost]
    judged = against_bars.judged(own, plan)
    measured = [row for row in against if plan.judged_at.holds(row.record) and row.record.cost]
    return Machine(
        name=name,
        facts=context.machines(own)[-1],
        summary=against_bars.counted(judged) if judged else _not_judged(plan),
        bars=against_bars.table(judged, ("decode", "prefill"), plan, against),
        sizes=against_bars.table(judged, ("logical bytes", "held bytes"), plan, against),
        missed=against_bars.missed(judged, against, plan),
        break_even=lengths.break_even(rows, plan),
        predicted=against_bars.floors(measured),
        crossing=crossing.of_all(against, reports_dir),
        peaks=(peaks := lengths.peaks(rows, plan))[0],
        peaks_said=peaks[1],
        seen=lengths.seen(seen),
        seen_said=lengths.seen_said(seen),
        points_said=points.said(against),
        points=[
            (points.title(members[0]), points.table(members, reports_dir)) for members in points.of(against).values()
        ],
        pictures=gallery.hang(figures.drawn(judged, seen, lengths.ratios_to_full(rows, plan), against), name),
    )


def _not_judged(plan: Plan) -> str:
    return f"The bars are for {against_bars.where(plan)}, which was not measured here."
