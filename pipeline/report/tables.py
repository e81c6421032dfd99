"""What a table is, small enough to be read without scrolling sideways, and the cells that tables share."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, held_share
from pipeline.record import TaskQuality, TextQuality

STATUS = {"ok": "measured", "error": "failed", "skipped": "skipped"}


@dataclass(frozen=True)
class Table:
    """`columns` are (heading, alignment); alignment is `l` or `r`."""

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        rule = ["---:" if align == "r" else ":---" for _, align in self.columns]
        lines = [[heading for heading, _ in self.columns], rule, *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def held_cells(measured: Sequence[TaskQuality | TextQuality]) -> list[str]:
    """Bytes of one item or stream, mean over what was measured, and their share of the reference's."""
    if not measured:
        return [q.DASH, q.DASH]
    return [q.data(statistics.fmean(part.kv_bytes_held for part in measured)), q.share(held_share(measured))]


def why_empty(row: Row) -> str:
    return "not measured" if row.record.status == "ok" else STATUS[row.record.status]


def where(row: Row, reports_dir: Path) -> list[str]:
    """Length, linked to the record it comes from, and batch."""
    return [link(row, q.count(row.cell.seq_len), reports_dir), q.count(row.cell.batch)]


def link(row: Row, text: str, reports_dir: Path) -> str:
    return f"[{text}]({quote(Path(os.path.relpath(row.path, reports_dir)).as_posix())})"
