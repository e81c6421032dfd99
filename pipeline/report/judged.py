"""What `pipeline.gates` wrote: what the model and the mechanisms had to reach, and which tokens each scorer keeps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipeline.findings import quantities as q
from pipeline.findings.evidence import group
from pipeline.findings.means import PROTOCOL
from pipeline.judgement import Gate, Kept
from pipeline.report.tables import Table


def gates(found: Sequence[Gate]) -> Table:
    columns = [("Requirement", "l"), ("Tokens", "r"), ("Measured", "r"), ("Demanded", "l"), ("n", "r"), ("", "l")]
    lines = [
        [
            f"{q.task(gate.name)} ({gate.unit})",
            q.count(gate.seq_len),
            _measured(gate),
            gate.demand,
            q.count(gate.n),
            "passed" if gate.passed else "**not passed**",
        ]
        for gate in found
    ]
    return Table(columns, lines)


def _measured(gate: Gate) -> str:
    if gate.interval is None:
        return q.decimal(gate.value, 3)
    low, high = (q.decimal(end, 3) for end in (gate.interval.low, gate.interval.high))
    p_value = "" if gate.p_value is None else f", p {q.decimal(gate.p_value)}"
    return f"{q.decimal(gate.value, 3)} [{low},{q.GLUE}{high}]{p_value}"


def kept(found: Sequence[Kept]) -> list[tuple[str, Table]]:
    """By kind and by depth under each protocol, the scorer that recalls most first: (heading, table)."""
    tables = []
    for protocol, unordered in group(found, lambda item: item.protocol).items():
        items = sorted(unordered, key=lambda item: -item.accuracy)
        where = f"{PROTOCOL[protocol]}, {q.count(items[0].kv_budget)} of {q.count(items[0].seq_len)} tokens"
        tables.append((f"Share of each kind that is kept ({where})", _by_kind(items)))
        tables.append((f"Share of each part of the prompt that is kept ({where})", _by_depth(items)))
    return tables


def _by_kind(items: Sequence[Kept]) -> Table:
    kinds = list(items[0].by_kind)
    columns = [("Scorer", "l"), ("Recall", "r"), *((kind.capitalize(), "r") for kind in kinds)]
    return Table(columns, [[*_head(item), *(q.share(item.by_kind[kind]) for kind in kinds)] for item in items])


def _by_depth(items: Sequence[Kept]) -> Table:
    n_parts = len(items[0].by_depth)
    columns = [("Scorer", "l"), ("Recall", "r")]
    columns += [(f"{100 * i // n_parts} to {100 * (i + 1) // n_parts}{q.GLUE}%", "r") for i in range(n_parts)]
    return Table(columns, [[*_head(item), *map(q.share, item.by_depth)] for item in items])


def _head(item: Kept) -> list[str]:
    return [f"`{item.technique}`", q.decimal(item.accuracy)]


def explanation(found: Sequence[Kept]) -> list[str]:
    """How far the order of the scorers is that of the answers they keep, one sentence for each protocol."""
    return [
        f"{PROTOCOL[protocol].capitalize()}, recall and the kept share of the asked values correlate with "
        f"{q.decimal(statistics.correlation([i.by_kind['asked value'] for i in items], [i.accuracy for i in items]))} "
        f"over {q.count(len(items))} scorers."
        for protocol, items in group(found, lambda item: item.protocol).items()
        if len({item.accuracy for item in items}) > 1 and len({item.by_kind["asked value"] for item in items}) > 1
    ]
