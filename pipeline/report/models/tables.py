"""Tables of the model level: what each trained architecture learned, holds and takes, beside the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.findings import proportions, verdicts
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group
from pipeline.findings.means import STRICTER
from pipeline.record import Cost, Interval, TaskQuality
from pipeline.report.models.architectures import (
    Architecture,
    Recall,
    at,
    beyond_trained,
    lengths,
    longest_timed,
    longest_trained,
    recall,
    text,
)
from pipeline.report.models.stories import TRAINED
from pipeline.report.tables import STATUS, Table, link

REFERENCE = "reference"
NOT_MEASURED = "not measured"


def tables(found: Sequence[Architecture]) -> Iterator[tuple[str, Table]]:
    """One for each question, in one order of architectures: side by side they would be too wide to read."""
    if (trained := longest_trained(found)) is not None:
        yield f"Training, and quality at {q.count(trained)} tokens", _quality(found, trained)
    if (timed := longest_timed(found)) is not None:
        yield "Bytes of keys, values and states of one sequence", _bytes(found)
        yield f"First token at {q.count(timed)} tokens", _time(found, timed, "First token", _first_token)
        yield f"Decode step at {q.count(timed)} tokens", _time(found, timed, "Decode step", _decode)
    for seq_len in beyond_trained(found):
        heading = f"Recall at {q.count(seq_len)} tokens, beyond the trained length (extrapolation)"
        yield heading, _extrapolated(found, trained, seq_len)
    if (missing := _missing(found)).rows:
        yield "Not measured or not trained, and why", missing


def _quality(found: Sequence[Architecture], seq_len: int) -> Table:
    columns = [("Architecture", "l"), ("Parameters", "r"), ("Recall formed at step", "r"), ("Tokens per CPU s", "r")]
    columns += [("Recall", "r"), ("is", "l"), ("Text loss, nats", "r"), ("Difference", "r"), ("is", "l")]
    return Table(columns, [[f"`{one.name}`", *_training(one), *_judged(one, seq_len)] for one in found])


def _training(one: Architecture) -> list[str]:
    if (story := one.story) is None:
        return [q.DASH] * 3
    solved, rate = story.solved_at_step, story.tokens_per_cpu_s
    untried = story.starts_from or not story.phases
    formed = q.DASH if untried else "not formed" if solved is None else q.count(solved)
    return [q.count(story.n_parameters), formed, q.DASH if rate is None else q.count(rate)]


def _judged(one: Architecture, seq_len: int) -> list[str]:
    row = at(seq_len, one.recalled)
    if row is None:
        return [q.DASH, why_not(one), q.DASH, q.DASH, why_not(one)]
    return [*_recall_cells(one, recall(row)), *_text_cells(one, row)]


def _recall_cells(one: Architecture, own: Recall | None) -> list[str]:
    if own is None:
        return [q.DASH, NOT_MEASURED]
    return [q.decimal_interval(own.accuracy), REFERENCE if one.is_reference else verdicts.accuracy(own.difference)]


def _text_cells(one: Architecture, row: Row) -> list[str]:
    if (own := text(row)) is None:
        return [q.DASH, q.DASH, NOT_MEASURED]
    if one.is_reference:
        return [q.decimal(own.nll, 3), q.DASH, REFERENCE]
    return [q.decimal(own.nll, 3), q.signed_interval(own.nll_difference, 3), verdicts.loss(own.nll_difference)]


def why_not(one: Architecture) -> str:
    """In two or three words why there is no quality."""
    if one.story and one.story.outcome != TRAINED:
        return one.story.outcome
    found = {STATUS[row.record.status] for row in one.rows if row.record.status != "ok"}
    return q.words(sorted(found)) if found else NOT_MEASURED


def _bytes(found: Sequence[Architecture]) -> Table:
    shown = lengths(found)
    columns = [("Architecture", "l"), ("Per token, predicted", "r"), ("Per token, held", "r")]
    columns += [(f"Held at {q.count(n)}", "r") for n in shown] + [(f"Share of {_reference(found)}'s", "r")]
    return Table(columns, [_bytes_line(one, shown) for one in found if one.held])


def _bytes_line(one: Architecture, shown: Sequence[int]) -> list[str]:
    predicted, measured = one.predicted_per_token, one.held_per_token
    return [
        f"`{one.name}`",
        *(q.DASH if value is None else q.data(value) for value in (predicted, measured)),
        *(q.data(one.held[n]) if n in one.held else q.DASH for n in shown),
        q.share(one.timed[-1].share),
    ]


def _time(
    found: Sequence[Architecture], seq_len: int, what: str, cells: Callable[[Architecture, Cost], list[str]]
) -> Table:
    """With the time of the reference that each ratio is to: it ran anew beside each, at a speed of its own."""
    name = _reference(found)
    columns = [("Architecture", "l"), (what, "r"), (f"{name} beside it", "r"), (f"Over {name}'s", "r"), ("is", "l")]
    timed = [(one, row.record.cost) for one in found if (row := at(seq_len, one.timed)) and row.record.cost]
    return Table(columns, [[f"`{one.name}`", *cells(one, cost)] for one, cost in timed])


def _first_token(one: Architecture, cost: Cost) -> list[str]:
    return _timed_cells(one, cost.technique.ttft_s_p50, cost.full.ttft_s_p50, cost.ttft_ratio, cost.aa_ttft_ratio)


def _decode(one: Architecture, cost: Cost) -> list[str]:
    return _timed_cells(one, cost.technique.tpot_s_p50, cost.full.tpot_s_p50, cost.tpot_ratio, cost.aa_tpot_ratio)


def _timed_cells(
    one: Architecture, seconds: float, beside: float, ratio: Interval, noise: Interval | None
) -> list[str]:
    if one.is_reference:
        return [q.seconds(seconds), q.DASH, q.DASH, REFERENCE]
    return [q.seconds(seconds), q.seconds(beside), q.ratio_interval(ratio), verdicts.speed(ratio, noise)]


def _extrapolated(found: Sequence[Architecture], trained: int | None, seq_len: int) -> Table:
    """Of the tasks that were asked there, beside the longest trained length; without a verdict, which would be one on
    the training.
    """
    asked = [(one, row) for one in found if (row := at(seq_len, one.recalled)) and not row.in_trained_length]
    shown = sorted({trained or seq_len, seq_len})
    own = [{n: asked_of(at(n, one.recalled)) for n in shown} for one, _ in asked]
    names = list(dict.fromkeys(name for measured in own for name in measured[seq_len]))
    places = [(name, n) for name in names for n in shown]
    columns = [("Architecture", "l"), *((f"{q.task(name).capitalize()} at {q.count(n)}", "r") for name, n in places)]
    lines = [
        [f"`{one.name}`", *(_share(measured[n].get(name)) for name, n in places)]
        for (one, _), measured in zip(asked, own, strict=True)
    ]
    return Table(columns, lines)


def asked_of(row: Row | None) -> dict[str, TaskQuality]:
    """By name, under the stricter protocol; empty without quality."""
    quality = row.record.quality if row else None
    return {task.task: task for task in quality.tasks if task.protocol == STRICTER} if quality else {}


def _share(task: TaskQuality | None) -> str:
    if task is None:
        return q.DASH
    return q.decimal_interval(proportions.share(sum(task.items.correct), len(task.items.correct)))


def _reference(found: Sequence[Architecture]) -> str:
    return next((f"`{one.name}`" for one in found if one.is_reference), "the reference")


def _missing(found: Sequence[Architecture]) -> Table:
    columns = [("Architecture", "l"), ("What", "l"), ("Status", "l"), ("Why", "l"), ("What would help", "l")]
    return Table(columns, [line for one in found for line in _why(one)])


def _why(one: Architecture) -> Iterator[list[str]]:
    """Its training, where that left no weights, and then its cells, those with one reason together."""
    if (story := one.story) and story.outcome != TRAINED:
        yield [f"`{one.name}`", "training", story.outcome, q.free_text(story.reason), q.DASH]
    failed = [row for row in one.rows if row.record.status != "ok"]
    for members in group(failed, lambda r: (r.cell.workload, r.record.status, r.record.reason)).values():
        record = members[0].record
        where = q.words(q.count(n) for n in sorted({row.cell.seq_len for row in members}))
        what = f"{record.cell.workload} at {where} tokens"
        yield [f"`{one.name}`", what, STATUS[record.status], q.free_text(record.reason), q.free_text(record.remedy)]


def details(found: Sequence[Architecture], reports_dir: Path) -> Iterator[tuple[str, Table]]:
    """Every record, linked."""
    judged = [(one, row) for one in found for row in one.recalled]
    if judged:
        yield "Recall task by task, and text, at every length", _tasks(judged, reports_dir)
    timed = [(one, row) for one in found for row in one.timed]
    if timed:
        yield "Times at every length", _times(timed, reports_dir)


def _tasks(judged: Sequence[tuple[Architecture, Row]], reports_dir: Path) -> Table:
    accuracies = [{name: task.accuracy for name, task in asked_of(row).items()} for _, row in judged]
    names = list(dict.fromkeys(name for own in accuracies for name in own))
    columns = [("Architecture", "l"), ("Tokens", "r"), *((q.task(name), "r") for name in names), ("Text, nats", "r")]
    lines = []
    for (one, row), own in zip(judged, accuracies, strict=True):
        shown = [q.decimal(own[name]) if name in own else q.DASH for name in names]
        read = text(row)
        lines.append([f"`{one.name}`", _length(row, reports_dir), *shown, q.decimal(read.nll, 3) if read else q.DASH])
    return Table(columns, lines)


def _times(timed: Sequence[tuple[Architecture, Row]], reports_dir: Path) -> Table:
    columns = [("Architecture", "l"), ("Tokens", "r"), ("First token", "r"), ("Decode step", "r")]
    columns += [("The reference beside it", "r"), ("Over that", "r"), ("Noise", "r")]
    lines = [
        [
            f"`{one.name}`",
            _length(row, reports_dir),
            q.seconds(row.record.cost.technique.ttft_s_p50),
            q.seconds(row.record.cost.technique.tpot_s_p50),
            q.seconds(row.record.cost.full.tpot_s_p50),
            q.ratio_interval(row.record.cost.tpot_ratio),
            q.ratio_ends(row.record.cost.aa_tpot_ratio),
        ]
        for one, row in timed
        if row.record.cost
    ]
    return Table(columns, lines)


def _length(row: Row, reports_dir: Path) -> str:
    """Beyond the trained length a quality says how a model extrapolates, and nothing about its cache."""
    beyond = " (extrapolation)" if row.record.quality and not row.in_trained_length else ""
    return link(row, q.count(row.cell.seq_len), reports_dir) + beyond
