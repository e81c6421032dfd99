"""What lies on the host and crosses the link to the device in every decode step, beside the measured link."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row, label
from pipeline.report.tables import Table, link

_COLUMNS = [("Tokens", "r"), ("Batch", "r"), ("On the host", "r"), ("Measured link", "r"), ("Floor of a step", "r")]
_COLUMNS += [("Decode step", "r"), ("Link used", "r")]


def of_technique(rows: Iterable[Row]) -> Table:
    """A line for each record of one technique; none where nothing crosses."""
    return Table(_COLUMNS, [cells for row in rows if (cells := _cells(row))])


def of_all(rows: Iterable[Row], reports_dir: Path) -> Table:
    """As `of_technique`, of several techniques, linked to their records."""
    lines = [
        [link(row, label(row.strategy), reports_dir), f"`{row.cell.model}`", *cells]
        for row in rows
        if (cells := _cells(row))
    ]
    return Table([("Technique", "l"), ("Model", "l"), *_COLUMNS], lines)


def _cells(row: Row) -> list[str]:
    cost, crossing_s, floor_s = row.record.cost, row.crossing_s, row.step_floor_s
    if not cost or not crossing_s or not floor_s:
        return []
    return [
        q.count(row.cell.seq_len),
        q.count(row.cell.batch),
        q.data(cost.technique.kv_bytes_offloaded),
        q.per_second(cost.link_bandwidth_bytes_per_s or 0.0, "B"),
        q.seconds(floor_s),
        q.seconds(cost.technique.tpot_s_p50),
        q.share(crossing_s / cost.technique.tpot_s_p50),
    ]
