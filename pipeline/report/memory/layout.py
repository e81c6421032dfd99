"""Memory layouts of a cache: what appending and attending took, beside heads first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import group
from pipeline.layout import AGAIN, REFERENCE, Layouts, Point, Timed
from pipeline.report.tables import Table

TITLES = {
    "heads_first": "Heads first",
    "heads_first_products": "Heads first, products",
    "tokens_first": "Tokens first",
    "tokens_first_products": "Tokens first, products",
    "paged": "Pages",
}
JOBS = {"append": "Appending a token", "attend": "Attending to all tokens"}


def title(found: Layouts) -> str:
    return f"machine `{found.environment['hardware_id']}`, {q.plural(found.environment['n_threads'], 'thread')}"


def tables(found: Layouts) -> list[tuple[str, Table]]:
    """One for each job; ratios are to heads first, whose noise is its ratio to itself."""
    return [
        (f"{heading}, all {q.plural(found.plan.n_layers, 'layer')}", _table(found, job))
        for job, heading in JOBS.items()
    ]


def _table(found: Layouts, job: str) -> Table:
    others = _others(_timed(found.points[0], job))
    columns = [("KV heads", "r"), ("Tokens", "r"), (TITLES[REFERENCE], "r"), ("Noise", "r")]
    columns += [(TITLES[name], "r") for name in others]
    return Table(columns, [_line(point, _timed(point, job), others) for point in found.points])


def _line(point: Point, timed: Mapping[str, Timed], others: Sequence[str]) -> list[str]:
    return [
        q.count(point.n_kv_heads),
        q.count(point.seq_len),
        q.seconds(median(timed[REFERENCE].seconds)),
        q.ratio_ends(timed[AGAIN].ratio),
        *(q.ratio_interval(timed[name].ratio) for name in others),
    ]


def sentences(found: Layouts) -> list[str]:
    """What each layout was, over all shapes and lengths, and how much of a step appending is."""
    return [_shapes(found), *_said(found, "append"), *_said(found, "attend"), _share(found)]


def _shapes(found: Layouts) -> str:
    plan = found.plan
    return (
        f"{q.plural(plan.n_layers, 'layer')} of {q.plural(plan.n_heads, 'query head')} of {q.count(plan.head_dim)} in "
        f"float32, one sequence; pages hold {q.plural(plan.page_size, 'token')} each."
    )


def _said(found: Layouts, job: str) -> list[str]:
    return [_verdict(found, job, name) for name in _others(_timed(found.points[0], job))]


def _verdict(found: Layouts, job: str, name: str) -> str:
    """`Appending a token, pages: slower at 4 of 6 points, …; 1.10× to 1.52× of heads first.`"""
    ratios = [_timed(point, job)[name].ratio.estimate for point in found.points]
    words = group(
        found.points, lambda point: verdicts.speed(_timed(point, job)[name].ratio, _timed(point, job)[AGAIN].ratio)
    )
    counted = q.words(f"{word} at {q.count(len(members))}" for word, members in words.items())
    return (
        f"{JOBS[job]}, {TITLES[name].lower()}: {counted} of {q.plural(len(found.points), 'point')}; "
        f"{q.ratio(min(ratios))} to {q.ratio(max(ratios))} of heads first."
    )


def _share(found: Layouts) -> str:
    shares = [
        median(point.append[REFERENCE].seconds) / median(point.attend[REFERENCE].seconds) for point in found.points
    ]
    return (
        f"With heads first, appending takes {q.share(min(shares))} to {q.share(max(shares))} of the time of attending."
    )


def _timed(point: Point, job: str) -> dict[str, Timed]:
    return {"append": point.append, "attend": point.attend}[job]


def _others(timed: Mapping[str, Timed]) -> list[str]:
    return [name for name in timed if name not in (REFERENCE, AGAIN)]
