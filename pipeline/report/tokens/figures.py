"""Which figures are drawn, each with what it shows in words: those of one setting and those of one technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, fullest, label, slug
from pipeline.findings.means import PROTOCOL, STRICTER, differs
from pipeline.report import captions, sentences
from pipeline.report.drawing import style
from pipeline.report.tokens import ceiling_plots, cost_plots, depth_plots, quality_plots, step_plots

Names = Mapping[tuple[str, str], str]
Drawn = list[tuple[str, str, Figure]]  # file name, alternative text, figure


def of_setting(rows: Sequence[Row], names: Names, *, in_detail: bool = True) -> Drawn:
    """Where one length and batch has to stand for all, it is the point that most techniques share.

    In detail: step by step, and by the depth of a needle too.
    """
    timed, recalled, read = (_timed(rows), _recalled(rows), _read(rows))
    with style():
        return [
            *(_of_cost(timed, _timed(fullest(rows, timed)), names, in_detail) if timed else []),
            *(_of_recall(_recalled(fullest(rows, recalled)), names, in_detail) if recalled else []),
            *(_of_text(_read(fullest(rows, read)), names) if read else []),
        ]


def _of_cost(timed: Sequence[Row], shown: Sequence[Row], names: Names, in_detail: bool) -> Drawn:
    """`shown` are those of one point."""
    where = sentences.point(shown[0])
    ratios = {_name(row, names): row.record.cost.tpot_ratio.estimate for row in shown if row.record.cost}
    held = {_name(row, names): row.share for row in shown if row.share is not None}
    over = f"over {shown[0].setting.reference}'s"
    drawn: list[tuple[str, str, Figure | None]] = [
        ("decode_ratio", f"decode step {over}, {where}: {captions.span(ratios, q.ratio)}",
         cost_plots.ratios(timed, names)),
        ("kv_bytes", f"bytes held by prompt tokens; {over}, {where}: {captions.span(held, q.share)}",
         cost_plots.kv_bytes(timed, names)),
    ]  # fmt: skip
    if predicted := [row for row in shown if row.record.predicted]:
        drawn += [
            ("predicted", ceiling_plots.predicted_text(predicted, names), ceiling_plots.predicted(predicted, names)),
            ("roofline", ceiling_plots.roofline_text(predicted, names), ceiling_plots.roofline(predicted, names)),
        ]
    return [(name, text, found) for name, text, found in drawn if found] + (_by_step(shown, names) if in_detail else [])


def _by_step(shown: Sequence[Row], names: Names) -> Drawn:
    where = sentences.point(shown[0])
    held = {_name(row, names): row.share for row in shown if row.share is not None}
    arms = {_name(row, names): row.record.cost.technique for row in shown if row.record.cost}
    step = captions.span({name: arm.tpot_s_p50 for name, arm in arms.items()}, q.seconds)
    peak = captions.span({name: float(arm.peak_memory_bytes or 0) for name, arm in arms.items()}, q.data)
    share = f"{captions.span(held, q.share)} of {shown[0].setting.reference}'s"
    drawn = [
        ("step_latency", f"time of each decode step, {where}: middle {step}", step_plots.latency(shown, names)),
        ("step_bytes", f"bytes held after each decode step, {where}: at the end {share}",
         step_plots.kv_bytes(shown, names)),
        ("step_memory", f"peak memory in each decode step, {where}: at most {peak}",
         step_plots.peak_memory(shown, names)),
    ]  # fmt: skip
    return [(name, text, found) for name, text, found in drawn if found]


def _of_recall(shown: Sequence[Row], names: Names, in_detail: bool) -> Drawn:
    parts = []
    for protocol, title in PROTOCOL.items():
        found = {
            _name(row, names): mean.estimate
            for row in shown
            if row.record.quality and (mean := quality_plots.mean_accuracy(row.record.quality.tasks, protocol))
        }
        parts.append(f"{title} {captions.span(found, q.decimal)}")
    text = f"recall accuracy by bytes held, {q.count(shown[0].cell.seq_len)} tokens: {'; '.join(parts)}"
    drawn: Drawn = [("recall", text, quality_plots.recall(shown, names))]
    if in_detail and (by_depth := depth_plots.recall(shown, names)):
        drawn.append(("depth", depth_plots.text(shown, names), by_depth))
    return drawn


def _of_text(shown: Sequence[Row], names: Names) -> Drawn:
    read = [(row, row.record.quality.text) for row in shown if row.record.quality and row.record.quality.text]
    losses = {_name(row, names): own.nll_difference.estimate for row, own in read}
    said = captions.span(losses, lambda value: f"{q.signed(value, 3)} nats")
    text = (
        f"loss on held-out text above {shown[0].setting.reference}'s, {q.count(shown[0].cell.seq_len)} tokens: {said}"
    )
    return [("text", text, quality_plots.text(shown, names))]


def of_technique(rows: Sequence[Row]) -> Drawn:
    """Rows of one strategy in one setting; recall is drawn where it differs from the reference's anywhere."""
    timed, name = _timed(rows), slug(rows[0].strategy)
    recalled = _recalled(rows)
    drawn: Drawn = []
    with style():
        if timed:
            longest = step_plots.longest(timed)
            ratio = longest.record.cost.tpot_ratio.estimate if longest.record.cost else 0.0
            text = (
                f"cost of {label(rows[0].strategy)}, {step_plots.where(longest)}: decode step {q.ratio(ratio)} and "
                f"bytes held {q.share(longest.share)} of {longest.setting.reference}'s"
            )
            drawn.append((f"{name}-cost", text, cost_plots.technique(timed)))
        if any(differs(row) for row in recalled):
            found = {
                f"{q.task(task.task)}, {q.count(row.cell.seq_len)} tokens": task.accuracy
                for row in recalled
                if row.record.quality
                for task in row.record.quality.tasks
                if task.protocol == STRICTER
            }
            text = (
                f"{PROTOCOL[STRICTER]} recall of {label(rows[0].strategy)} by task: {captions.span(found, q.decimal)}"
            )
            drawn.append((f"{name}-recall", text, quality_plots.technique(recalled)))
    return drawn


def _name(row: Row, names: Names) -> str:
    return names[row.strategy, row.variant]


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.cost]


def _recalled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality and row.record.quality.tasks]


def _read(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.quality and row.record.quality.text]
