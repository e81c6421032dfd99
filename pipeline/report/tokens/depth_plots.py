"""Recall by how deep in the context the needle lies: a panel for each technique that loses any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from pipeline.findings import proportions
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, group
from pipeline.findings.means import PROTOCOL, STRICTER, tasks_of
from pipeline.record import Interval
from pipeline.report import captions
from pipeline.report.drawing import REFERENCE, error_bars, mark
from pipeline.report.models.reach import TASKS
from pipeline.report.panels import grid

Names = Mapping[tuple[str, str], str]
N_PARTS = 5  # of the context
NEEDLES = [task for tasks in TASKS.values() for task in tasks]  # one fact is asked for, so that it has one depth
SHIFT = 0.08  # by which the two protocols are moved apart


def recall(rows: Sequence[Row], names: Names) -> Figure | None:
    """Rows of one point; None where no technique answers fewer than the reference at any depth."""
    shown = _losing(rows)
    if not shown:
        return None
    said = f"depth of the needle, % of {q.count(rows[0].cell.seq_len)} tokens"
    marks = " (filled: {}; open: {}; grey: {})".format(*PROTOCOL.values(), rows[0].setting.reference)
    titles = [(names[row.strategy, row.variant], mark(row.strategy)) for row in shown]
    canvas, places = grid(titles, said + marks, "recall")
    for axes, row in zip(places, shown, strict=True):
        reference = by_depth(row, STRICTER, of_reference=True)
        axes.plot(list(reference), [i.estimate for i in reference.values()], color=REFERENCE, linewidth=1)
        for protocol, shift, is_open in zip(PROTOCOL, (-SHIFT, SHIFT), (False, True), strict=True):
            own, found = mark(row.strategy), by_depth(row, protocol)
            shape: dict[str, Any] = {
                "marker": own.marker,
                "ms": 4.5,
                "capsize": 2,
                "lw": 1.2,
                "ls": "--" if is_open else "-",
            }
            axes.errorbar(
                [part + shift for part in found], [i.estimate for i in found.values()], error_bars([*found.values()]),
                color=own.color, mfc="white" if is_open else own.color, **shape,
            )  # fmt: skip
        axes.set_ylim(-0.06, 1.08)
        axes.xaxis.set_major_locator(FixedLocator(range(N_PARTS)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda part, _: f"≤{100 * (part + 1) / N_PARTS:.0f}"))
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        axes.tick_params(labelsize=8)
    return canvas


def _losing(rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if any(
            own.estimate < by_depth(row, protocol, of_reference=True)[part].estimate
            for protocol in PROTOCOL
            for part, own in by_depth(row, protocol).items()
        )
    ]


def by_depth(row: Row, protocol: str, *, of_reference: bool = False) -> dict[int, Interval]:
    """Part of the context -> recall, over the tasks that ask for one fact and that the reference can do."""
    items = [
        (min(int(depth * N_PARTS), N_PARTS - 1), hit)
        for task in tasks_of(row, protocol)
        if task.task in NEEDLES and task.items.depth
        for depth, hit in zip(
            task.items.depth, task.items.correct_full if of_reference else task.items.correct, strict=True
        )
    ]
    parts = group(items, lambda item: item[0])
    return {part: proportions.share(sum(hit for _, hit in parts[part]), len(parts[part])) for part in sorted(parts)}


def text(rows: Sequence[Row], names: Names) -> str:
    """Of the stricter protocol: who is lowest and highest in the first and in the last part."""
    shown = _losing(rows)
    said = []
    for where, part in (("first", 0), ("last", N_PARTS - 1)):
        found = {
            names[row.strategy, row.variant]: i.estimate for row in shown if (i := by_depth(row, STRICTER).get(part))
        }
        said.append(f"in the {where} {q.share(1 / N_PARTS)} of the context {captions.span(found, q.decimal)}")
    return (
        f"{PROTOCOL[STRICTER]} recall by depth of the needle, {q.count(rows[0].cell.seq_len)} tokens: {'; '.join(said)}"
    )
