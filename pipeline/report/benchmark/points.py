"""Every point of the benchmark: what each technique took there; and on a GPU what a step takes that Python launches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import bars
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group, label, labels
from pipeline.findings.orders import tau_b
from pipeline.report import sentences
from pipeline.report.tables import Table, link, why_empty
from pipeline.report.tokens import sentences as token_sentences

Point = tuple[str, int, int]  # model, batch, seq_len


def is_benchmark(row: Row) -> bool:
    return row.cell.level == bars.LEVEL


def of(rows: Iterable[Row]) -> dict[Point, list[Row]]:
    return group(rows, lambda row: (row.cell.model, row.cell.batch, row.cell.seq_len))


def title(row: Row) -> str:
    return f"{sentences.point(row)} on `{row.cell.model}`"


def table(rows: Sequence[Row], reports_dir: Path) -> Table:
    columns = [("Technique", "l"), ("KV held", "r"), ("Share", "r"), ("First token", "r"), ("Decode step", "r")]
    columns += [("Noise", "r"), ("is", "l"), ("Step", "r")]
    is_graph = any(map(launched_s, rows))
    columns += [("Launched from Python", "r")] if is_graph else []
    return Table(columns, [[link(row, label(row.strategy), reports_dir), *_cells(row, is_graph)] for row in rows])


def _cells(row: Row, is_graph: bool) -> list[str]:
    cost = row.record.cost
    if cost is None:
        return [*[q.DASH] * 5, f"{why_empty(row)}: {q.free_text(row.record.reason)}", *[q.DASH] * (1 + is_graph)]
    undefined = cost.ttft_ratio.estimate != cost.ttft_ratio.estimate
    launched = launched_s(row)
    step = q.seconds(cost.technique.tpot_s_p50)
    return [
        q.data(cost.technique.kv_bytes_held[-1]),
        q.share(row.share),
        "not measured" if undefined else q.ratio_interval(cost.ttft_ratio),
        q.ratio_interval(cost.tpot_ratio),
        q.ratio_ends(cost.aa_tpot_ratio),
        verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio),
        *([step, q.seconds(launched)] if launched else [q.DASH, step] if is_graph else [step]),
    ]


def launched_s(row: Row) -> float | None:
    """Of a decode step whose kernels Python launches, where the steps that were timed are graphs."""
    return row.record.cost.technique.launched_step_s_p50 if row.record.cost else None


def as_graphs(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if launched_s(row)]


def said(rows: Sequence[Row]) -> list[str]:
    """On a GPU, of each point: how fast the techniques are, and how much of that is seen where Python launches."""
    lines = []
    for members in of(as_graphs(rows)).values():
        lines += [
            f"On `{members[0].cell.model}`: {line}" for line in token_sentences.headlines(members, labels(members))
        ]
        lines.append(_launching(members))
    return lines


def _launching(rows: Sequence[Row]) -> str:
    """What one graph and a loop of Python make of the same steps."""
    graphs, launches = (
        [row.record.cost.technique.tpot_s_p50 for row in rows if row.record.cost],
        [launched_s(row) or 0.0 for row in rows],
    )
    stock = rows[0].record.cost
    assert stock is not None, "only timed rows come here"
    reference = ""
    if stock.full.launched_step_s_p50:
        reference = f" ({rows[0].setting.reference}'s {q.seconds(stock.full.launched_step_s_p50)})"
    text = (
        f"The same steps, each launched from Python kernel by kernel at {title(rows[0])}, take "
        f"{_range(launches)}{reference}, where one graph takes {_range(graphs)}. The graph runs the same kernels, so "
        "that the rest is what launching them takes: the interpreter, and what a library prepares for each length."
    )
    agreement = tau_b(launches, graphs)
    return text if agreement is None else f"{text} Kendall's tau-b of the two orders is {q.decimal(agreement)}."


def _range(values: Sequence[float]) -> str:
    return f"{q.seconds(min(values))} to {q.seconds(max(values))}"
