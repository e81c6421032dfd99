"""Words that all chapters share: verdicts in their order, and how points, papers and states are said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group
from pipeline.record import Interval
from pipeline.report.tables import STATUS

Names = Mapping[tuple[str, str], str]
ORDER = (
    verdicts.FASTER,
    verdicts.SLOWER,
    verdicts.BETTER,
    verdicts.WORSE,
    verdicts.NO_DIFFERENCE,
    verdicts.UNDECIDED,
    verdicts.ONE_SAMPLE,
    verdicts.UNDEFINED,
)


def status(rows: Sequence[Row]) -> str:
    counts = [f"{q.count(sum(row.record.status == key for row in rows))} {word}" for key, word in STATUS.items()]
    return q.words(counts)


def grouped(judged: Iterable[tuple[Row, str, Interval | None, Callable[[float], str]]], names: Names) -> str:
    """`faster: a (0.41×) and b (0.43×); slower: c (9.00×)`"""
    ordered = sorted(judged, key=lambda item: (ORDER.index(item[1]), item[2].estimate if item[2] else 0.0))
    return "; ".join(
        f"{verdict}: "
        + q.words(f"{named(row, names)} ({write(value.estimate)})" for row, _, value, write in members if value)
        for verdict, members in group(ordered, lambda item: item[1]).items()
    )


def named(row: Row, names: Names) -> str:
    return f"`{names[row.strategy, row.variant]}`"


def point(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} tokens and batch {q.count(row.cell.batch)}"


def paper(text: str) -> str:
    """A link where the paper is an address or an arXiv number, the text itself otherwise."""
    if text.startswith("http"):
        return f"[{text.split('//', 1)[1]}]({text})"
    return re.sub(r"(?:arXiv[: ]\s*)?(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def nothing_measured(rows: Sequence[Row]) -> str:
    return f"There is no measurement here: {status(rows)}."
