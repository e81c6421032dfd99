"""Which technique to use: use cases, a decision tree and a guide, each answered by rules over records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.advise import candidates, use_cases
from pipeline.advise.candidates import Basis, Candidate
from pipeline.advise.selection import Needs, Selection, select
from pipeline.advise.use_cases import Plan, Question, UseCase
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import ABLATION, BASELINE, Row
from pipeline.findings.means import STRICTER
from pipeline.report.advice import insights
from pipeline.report.advice.words import beside, bounds, complexity, kept, rule
from pipeline.report.parts import Part
from pipeline.report.tables import Table, link

N_NEXT = 3  # runners-up that are named


@dataclass(frozen=True)
class Advice:
    """What the template shows of one machine; `tree` is a nested Markdown list."""

    machine: str
    basis: str
    insights: list[str]
    cases: list[Part]
    tree: str
    guide: Table


def advised(rows: Sequence[Row], reports_dir: Path) -> list[Advice]:
    """One for each machine that timed techniques whose quality was measured too."""
    plan, own = use_cases.load(), [row for row in rows if row.cell.level != ABLATION]  # where nothing is timed
    return [found for basis in candidates.bases(own) if (found := _advice(own, basis, plan, reports_dir))]


def _advice(rows: Sequence[Row], basis: Basis, plan: Plan, reports_dir: Path) -> Advice | None:
    measured = candidates.candidates(rows, basis, candidates.longest(rows, basis), batch=1)
    found = [one for one in measured if one.timed and one.judged]
    if all(one.is_control for one in found):
        return None
    full = [row for row in candidates.comparable(rows) if row.strategy == BASELINE and row.record.status == "ok"]
    selections = {case.title: select(found, case.needs) for case in plan.use_cases}
    return Advice(
        basis.machine,
        _rests_on(found, basis),
        insights.insights(found, [row for row in full if row.hardware_id == basis.machine], reports_dir),
        [_case(case, selections[case.title], reports_dir) for case in plan.use_cases],
        "\n".join(_tree(plan.tree, found, reports_dir)),
        _guide(found, selections, full, reports_dir),
    )


def _rests_on(found: Sequence[Candidate], basis: Basis) -> str:
    timed = sorted({cost.row.cell.seq_len for one in found for cost in one.costs})
    judged = sorted({one.judged.row.cell.seq_len for one in found if one.judged})
    n_controls = sum(one.is_control for one in found)
    machines = {one.judged.row.hardware_id for one in found if one.judged} - {basis.machine}
    elsewhere = f", on {q.words(f'`{name}`' for name in sorted(machines))}" if machines else ""
    return (
        f"Cost was measured on `{basis.timed_on}` at {q.words(map(q.count, timed))} tokens; a technique speaks "
        "from the longest that it was timed at, unless a length is named. Quality was measured on "
        f"`{basis.judged_on}` at {q.words(map(q.count, judged))} tokens"
        f"{elsewhere}; {q.plural(len(found) - n_controls, 'technique')} have both, beside "
        f"{q.plural(n_controls, 'control')} that {'is' if n_controls == 1 else 'are'} never advised. Shares are of the "
        "full cache's, bytes are counted wherever they lie, and a bound holds by the estimate: brackets say how sure "
        "that is. For another model, length or memory: `python -m pipeline.advise`."
    )


def _case(case: UseCase, selection: Selection, reports_dir: Path) -> Part:
    return Part(
        case.title,
        [
            f"What is wanted: {case.asks}",
            f"Rule: {rule(case.needs)}.",
            _answer(selection, case.needs, reports_dir),
            *_next(selection.fitting[1 : 1 + N_NEXT], case.needs, reports_dir),
            *_ruled_out(selection),
        ],
        [],
    )


def _answer(selection: Selection, needs: Needs, reports_dir: Path) -> str:
    if not selection.fitting:
        return f"Use: the full cache. No technique qualifies.{_nearest(selection, reports_dir)}"
    best, n = selection.fitting[0], len(selection.fitting)
    first = "the only one that qualifies" if n == 1 else f"the first of {q.count(n)} that qualify"
    return f"Use: **`{best.name}`**, {first}: {beside(best, needs.protocol, reports_dir)}."


def _nearest(selection: Selection, reports_dir: Path) -> str:
    """The one that misses fewest bounds, by least, with what it misses."""
    if not selection.missing:
        return ""
    one, missed = selection.missing[0]
    return f" Nearest is {_linked(one, reports_dir)}, which {q.words(miss.said for miss in missed)}."


def _next(found: Sequence[Candidate], needs: Needs, reports_dir: Path) -> list[str]:
    return [
        f"{'Then' if index else 'Next'}: `{one.name}`, {beside(one, needs.protocol, reports_dir)}."
        for index, one in enumerate(found)
    ]


def _ruled_out(selection: Selection) -> list[str]:
    """How many miss which bound; one may miss several."""
    if not selection.missing:
        return []
    about: dict[str, int] = {}
    for miss in (miss for _, missed in selection.missing for miss in missed):
        about[miss.about] = about.get(miss.about, 0) + 1
    counts = q.words(f"{q.count(n)} by {what}" for what, n in about.items())
    return [f"Ruled out: {q.plural(len(selection.missing), 'technique')} ({counts})."]


def _linked(one: Candidate, reports_dir: Path) -> str:
    return link(one.row, f"`{one.name}`", reports_dir)


def _tree(questions: Sequence[Question], found: Sequence[Candidate], reports_dir: Path) -> Iterator[str]:
    yield "- Does the full cache fit into memory, and are its steps fast enough?"
    yield "  - **yes**: keep it, and lose nothing."
    yield "  - **no**: go on."
    yield from _branches(questions, {}, "", found, reports_dir)


def _branches(
    questions: Sequence[Question],
    settled: Mapping[str, Any],
    indent: str,
    found: Sequence[Candidate],
    reports_dir: Path,
) -> Iterator[str]:
    """The first question with its answers, each with all questions that are left, or with what fits."""
    asked, *left = questions
    yield f"{indent}- {asked.question}"
    for choice in asked.answers:
        needs = {**settled, **choice.needs}
        said = f" ({q.words(asked_for)})" if (asked_for := bounds(choice.needs)) else ""
        line = f"{indent}  - **{choice.answer}**{said}"
        if left:
            yield line
            yield from _branches(left, needs, f"{indent}    ", found, reports_dir)
        else:
            yield f"{line}: {_leaf(found, Needs.model_validate(needs), reports_dir)}"


def _leaf(found: Sequence[Candidate], needs: Needs, reports_dir: Path) -> str:
    selection = select(found, needs)
    if not selection.fitting:
        return f"the full cache; no technique qualifies.{_nearest(selection, reports_dir)}"
    best = selection.fitting[0]
    return f"`{best.name}`, {beside(best, needs.protocol, reports_dir)}."


def _guide(
    found: Sequence[Candidate], selections: Mapping[str, Selection], full: Sequence[Row], reports_dir: Path
) -> Table:
    """Most recall first; the name links to the record of cost, recall to that of quality."""
    columns = [("Technique", "l"), ("Bytes saved", "r"), ("Decode step", "r"), ("Noise", "r")]
    columns += [("is", "l"), ("Recall kept, asked later / before", "r"), ("Text loss, nats", "r"), ("Found worse", "l")]
    columns += [("Changes", "l"), ("Best for", "l"), ("Also meets", "l")]
    ordered = sorted(found, key=lambda one: (one.is_control, -_recall(one), one.name))
    return Table(columns, [_guide_line(one, selections, full, reports_dir) for one in ordered])


def _guide_line(
    one: Candidate, selections: Mapping[str, Selection], full: Sequence[Row], reports_dir: Path
) -> list[str]:
    assert one.timed and one.judged
    place = f", {q.share(one.timed.elsewhere)} elsewhere" if one.timed.elsewhere else ""
    best = [title for title, of in selections.items() if of.fitting[:1] == [one]]
    meets = [title for title, of in selections.items() if one in of.fitting[1:]]
    return [
        link(one.timed.row, f"`{one.name}`", reports_dir),
        f"{q.share(1 - one.timed.share).replace('-', q.MINUS)}{place}",
        q.ratio_interval(one.decode) if one.decode else q.DASH,
        q.ratio_ends(one.timed.noise),
        one.timed.verdict,
        link(one.judged.row, kept(one), reports_dir),
        q.signed(one.text.estimate, 3) if one.text else q.DASH,
        _found_worse(one),
        complexity(one, full),
        "a control" if one.is_control else ", ".join(best) or q.DASH,
        ", ".join(meets) or q.DASH,
    ]


def _recall(one: Candidate) -> float:
    kept_later = one.recall(STRICTER)
    return kept_later.estimate if kept_later else 0.0


def _found_worse(one: Candidate) -> str:
    """The quality in which a difference from the full cache was found."""
    recall = {"recall later": one.recall(STRICTER), "recall before": one.recall("query_aware")}
    worse = [name for name, found in recall.items() if found and found.high < 1]
    worse += ["text"] if one.text and verdicts.loss(one.text) == verdicts.WORSE else []
    return ", ".join(worse) or "nothing"
