"""Interactive charts of quality: against the share of bytes held, by task, and along budgets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group, held_share, label
from pipeline.findings.means import N_RESAMPLES, PROTOCOL, SEED, accuracies, mean_difference, shifted, tasks_of
from pipeline.intervals import bootstrap
from pipeline.record import Interval, TaskQuality, TextQuality
from pipeline.report.ablations.equal_bytes import compared
from pipeline.report.drawing import INK, mark
from pipeline.report.page.charts import Axis, Chart, Trace, View, budgets, names, plain, points, shares

Names = Mapping[tuple[str, str], str]
AGNOSTIC_FIRST = tuple(reversed(PROTOCOL.items()))  # the stricter protocol is what is shown first
ACCURACY = "recall accuracy, mean over tasks"
LOSS = "loss on held-out text, nats"


def of_setting(rows: Sequence[Row], named: Names) -> dict[str, Chart]:
    """By the name of the figure that it stands for; quality at each length, the longest first."""
    by_length = group(sorted(rows, key=lambda row: -row.cell.seq_len), lambda row: row.cell.seq_len)
    recall = [
        _against_share(f"{title}, {q.count(at)} tokens", members, named, _recalled(members, protocol), ACCURACY)
        for at, members in by_length.items()
        for protocol, title in AGNOSTIC_FIRST
    ]
    text = [
        _against_share(f"{q.count(at)} tokens", members, named, _read(members), LOSS)
        for at, members in by_length.items()
    ]
    return {"recall": Chart(recall), "text": Chart(text)}


def of_technique(rows: Sequence[Row]) -> Chart:
    """Rows of one strategy: accuracy by task, with bars for the reference; the longest length first."""
    return Chart([_by_task(row, protocol, title) for row in reversed(rows) for protocol, title in AGNOSTIC_FIRST])


def of_budgets(rows: Sequence[Row]) -> dict[str, Chart]:
    """A curve for each technique over its budgets, and a point where there is a single one."""
    kept = [row for row in rows if row.record.quality and row.in_trained_length]
    techniques = group(compared(kept), lambda row: row.strategy)
    reference = rows[0].setting.reference
    across = budgets(f"KV bytes held, share of {reference}'s")
    recall = [
        View(
            title,
            [_sweep(name, _accuracy(members, protocol)) for name, members in techniques.items()],
            across,
            plain(ACCURACY),
        )
        for protocol, title in AGNOSTIC_FIRST
    ]
    losses = [_sweep(name, _losses(members)) for name, members in techniques.items()]
    text = [View(LOSS, losses, across, plain(f"loss above {reference}'s, nats"))]
    return {"recall": Chart(recall), "text": Chart(text)}


Point = tuple[Row, float, Interval]  # with the share of bytes held


def _recalled(rows: Iterable[Row], protocol: str) -> list[Point]:
    """The interval is that of the difference from the reference."""
    found = []
    for row in rows:
        tasks = tasks_of(row, protocol)
        share, mean = held_share(tasks), mean_difference(tasks)
        if mean and share is not None:
            found.append((row, share, shifted(mean, statistics.fmean(task.accuracy_full for task in tasks))))
    return found


def _read(rows: Iterable[Row]) -> list[Point]:
    read = [(row, own) for row in rows if (own := _text(row))]
    return [(row, held_share([own]) or 0.0, shifted(own.nll_difference, own.nll_full)) for row, own in read]


def _text(row: Row) -> TextQuality | None:
    return row.record.quality.text if row.record.quality else None


def _accuracy(rows: Iterable[Row], protocol: str) -> list[Point]:
    recalled = [(row, tasks) for row in rows if (tasks := tasks_of(row, protocol))]
    return [(row, held_share(tasks) or 0.0, bootstrap(accuracies(tasks), N_RESAMPLES, SEED)) for row, tasks in recalled]


def _losses(rows: Iterable[Row]) -> list[Point]:
    return [(row, held_share([own]) or 0.0, own.nll_difference) for row in rows if (own := _text(row))]


def _against_share(name: str, rows: Sequence[Row], named: Names, found: Sequence[Point], title: str) -> View:
    traces = [
        points(
            named[row.strategy, row.variant],
            mark(row.strategy),
            [share],
            [value.estimate],
            [_said(share, value)],
            [value],
            mode="markers",
        )
        for row, share, value in found
    ]
    return View(name, traces, _share(rows), plain(title))


def _share(rows: Sequence[Row]) -> Axis:
    return shares(f"KV bytes held, share of {rows[0].setting.reference}'s")


def _said(share: float, value: Interval) -> str:
    return f"{q.decimal_interval(value)}<br>{q.share(share)} of the bytes"


def _sweep(strategy: str, found: Sequence[Point]) -> Trace:
    """In rising order of bytes."""
    placed = sorted(found, key=lambda point: point[1])
    values = [value for _, _, value in placed]
    hover = [f"{_said(share, value)}<br>{row.variant or 'all'}" for row, share, value in placed]
    at, y = [share for _, share, _ in placed], [value.estimate for value in values]
    return points(label(strategy), mark(strategy), at, y, hover, values)


def _by_task(row: Row, protocol: str, title: str) -> View:
    found = [t for t in row.record.quality.tasks if t.protocol == protocol] if row.record.quality else []
    values = [shifted(task.accuracy_difference, task.accuracy_full) for task in found]
    at, full = [q.task(task.task) for task in found], [task.accuracy_full for task in found]
    own, reference = mark(row.strategy), row.setting.reference
    estimates, judged = [value.estimate for value in values], [_judged(task) for task in found]
    bar = {"symbol": "line-ns-open", "size": 16, "color": INK, "line": {"width": 2}}
    traces = [
        points(reference, own, full, at, [q.decimal(value) for value in full], mode="markers", marker=bar),
        points(label(row.strategy), own, estimates, at, judged, values, mode="markers"),
    ]
    return View(f"{title}, {q.count(row.cell.seq_len)} tokens", traces, plain("accuracy"), names(at))


def _judged(task: TaskQuality) -> str:
    value = shifted(task.accuracy_difference, task.accuracy_full)
    return f"{q.decimal_interval(value)}, {verdicts.recall(task)}"
