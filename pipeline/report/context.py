"""What stands around the results: machines, grid, configurations, and what was not measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.findings import quantities as q
from pipeline.findings.evidence import MODEL, Row, Setting, group, label
from pipeline.report.tables import STATUS, Table, where


def configuration(rows: Sequence[Row]) -> Table:
    """One line per axis (what a strategy's configuration holds as a part); several values where the records differ."""
    axes = dict.fromkeys(a for row in rows for a, part in row.config("strategy").items() if isinstance(part, dict))
    lines = [[axis, _distinct(_part(row.config("strategy").get(axis)) for row in rows)] for axis in axes]
    budget = _distinct(row.variant for row in rows) or "everything"
    return Table([("Axis", "l"), ("Part", "l")], [*lines, ["budget", budget]])


def _part(value: Any) -> str:
    """`{_target_: a.b.SinkScorer, n_sinks: 4}` -> `SinkScorer`, `n_sinks=4`; a part within it has its own line."""
    if not isinstance(value, dict):
        return "" if value is None else f"`{value}`"
    own = {key: option for key, option in value.items() if not key.startswith("_") and not isinstance(option, dict)}
    options = [f"`{key}={option}`" for key, option in own.items()]
    return ", ".join([f"`{str(value.get('_target_')).rpartition('.')[2]}`", *options])


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def grid(rows: Sequence[Row]) -> Table:
    """What was run: one line per setting, whatever holds the weights and whoever runs them."""
    columns = [("Level", "l"), ("Model", "l"), ("Workload", "l"), ("Machine", "l"), ("Techniques", "l")]
    columns += [("Weights", "l"), ("Engines", "l"), ("Tokens", "l"), ("Batch", "l"), (" / ".join(STATUS.values()), "r")]
    return Table(columns, [_grid_line(members) for members in group(rows, _run_together).values()])


def _run_together(row: Row) -> Setting:
    """One setting; what is compared shares a line: weights, engines, and architectures, which are models."""
    together = replace(row.setting, weights="", engine="")
    return replace(together, model="") if row.cell.level == MODEL else together


def _grid_line(rows: Sequence[Row]) -> list[str]:
    cell, setting = rows[0].cell, rows[0].setting
    return [
        cell.level,
        f"{_names(row.cell.model for row in rows)} ({cell.dtype}, {cell.device}, seed {cell.seed})",
        setting.workload.replace("+", ", "),
        f"`{setting.hardware_id}`",
        _names(label(row.strategy) for row in rows),
        _names(label(row.cell.weights) for row in rows),
        _names(row.cell.engine for row in rows),
        ", ".join(q.count(n) for n in sorted({row.cell.seq_len for row in rows})),
        ", ".join(q.count(n) for n in sorted({row.cell.batch for row in rows})),
        " / ".join(q.count(sum(row.record.status == status for row in rows)) for status in STATUS),
    ]


def _names(found: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(found))


def environment(rows: Sequence[Row]) -> Table:
    """One column per machine; several values where its records differ."""
    machines = group(rows, lambda row: row.hardware_id)
    facts = {name: [_flat(row.record.environment) for row in members] for name, members in machines.items()}
    keys = list(
        dict.fromkeys(key for found in facts.values() for flat in found for key in flat if key != "hardware id")
    )
    lines = [
        [key, *(_distinct(flat.get(key, "") for flat in found) or q.DASH for found in facts.values())] for key in keys
    ]
    ceilings = [[name, *(_ceiling(members, name) for members in machines.values())] for name in CEILINGS]
    lines += [line for line in ceilings if set(line[1:]) != {q.DASH}]
    return Table([("", "l"), *((f"`{name}`", "l") for name in machines)], lines)


CEILINGS = {
    "measured copy bandwidth": ("copy_bandwidth_bytes_per_s", "B"),
    "measured matrix-product rate": ("matmul_flop_per_s", "FLOP"),
    "measured link from the host": ("link_bandwidth_bytes_per_s", "B"),
}


def _ceiling(rows: Iterable[Row], name: str) -> str:
    field, unit = CEILINGS[name]
    found = (getattr(row.record.cost, field) for row in rows if row.record.cost)
    values = [value for value in found if value is not None]
    if not values:
        return q.DASH
    middle, low, high = (q.per_second(f(values), unit) for f in (statistics.median, min, max))
    return f"{middle} (median of {q.plural(len(values), 'record')}; {low} to {high})"


def machines(rows: Iterable[Row]) -> list[str]:
    """One line for each machine: what it is, what ran on it, and its measured ceilings."""
    return [_machine(name, members) for name, members in group(rows, lambda row: row.hardware_id).items()]


def _machine(name: str, rows: Sequence[Row]) -> str:
    facts = _flat(rows[-1].record.environment)
    known = [before + facts[key] + after for key, before, after in SHOWN if key in facts]
    copies, multiplies, link = (_ceiling(rows, ceiling).partition(" (")[0] for ceiling in CEILINGS)
    fetches = "" if link == q.DASH else f"; its device gets {link} from the host"
    return (
        f"Machine `{name}`: {', '.join(known)}; copies {copies} and multiplies matrices at {multiplies}{fetches}, "
        "as measured."
    )


SHOWN = (
    ("cpu", "", ""),
    ("n threads", "", " threads"),
    ("gpus", "GPU: ", ""),
    ("torch", "torch ", ""),
    ("transformers", "transformers ", ""),
)


def _flat(value: dict[str, Any]) -> dict[str, str]:
    """Nested facts by their own names, groups opened."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flat(item) if isinstance(item, dict) else {key.replace("_", " "): _fact(item)}
    return flat


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(map(_fact, value.values()))
    return "; ".join(map(_fact, value)) or "none" if isinstance(value, list) else q.free_text(str(value))


def not_measured(rows: Iterable[Row], reports_dir: Path) -> Table:
    columns = [("Cell", "l"), ("Tokens", "r"), ("Batch", "r"), ("Status", "l"), ("Why", "l"), ("What would help", "l")]
    lines = [
        [
            f"`{label(row.strategy)}` on `{row.cell.model}`, `{row.hardware_id}`",
            *where(row, reports_dir),
            STATUS[row.record.status],
            q.free_text(row.record.reason),
            q.free_text(row.record.remedy),
        ]
        for row in rows
        if row.record.status != "ok"
    ]
    return Table(columns, lines)
