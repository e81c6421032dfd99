"""The rows that stand first, and what `dvc metrics show` prints of them: one line for each technique."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence

from pipeline.findings.evidence import Row, Setting, fullest, group, labels, slug
from pipeline.findings.means import STRICTER, accuracies, tasks_of

LEVEL = "token"
FOLDER = "metrics"
DIGITS = 3  # more would make every new measurement a difference
Files = dict[str, bytes]


def largest(rows: Sequence[Row]) -> Setting:
    """The setting in which most techniques stand beside each other, and of several the one with the longest length."""
    settings = group(rows, lambda row: row.setting)
    there = {setting: fullest(members, members) for setting, members in settings.items()}
    return max(there, key=lambda setting: (len(there[setting]), there[setting][0].cell.seq_len))


def costs(rows: Sequence[Row]) -> list[Row]:
    """Of one setting those at the point where most techniques were timed; empty if none was."""
    return fullest(rows, [row for row in rows if row.record.cost])


def qualities(rows: Sequence[Row]) -> list[Row]:
    """Of one setting those at the point where most techniques were judged, within the trained length."""
    return fullest(rows, [row for row in rows if row.record.quality and row.in_trained_length])


def metrics(rows: Sequence[Row]) -> Files:
    """`metrics/MACHINE/TECHNIQUE.json`, the numbers of the report's first tables; none of what has none there.

    Ratios and the share are to the full cache; recall is the accuracy of the stricter protocol, mean over the tasks
    that count, text_nll is in nats per token.
    """
    machines = group([row for row in rows if row.cell.level == LEVEL], lambda row: row.hardware_id)
    return {
        f"{FOLDER}/{machine}/{slug(name)}.json": f"{json.dumps(numbers, indent=1)}\n".encode()
        for machine, members in machines.items()
        for name, numbers in _of_machine(members).items()
        if numbers
    }


def _of_machine(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    timed = [row for row in rows if row.record.cost]
    judged = [row for row in rows if row.record.quality and row.in_trained_length]
    found: dict[str, dict[str, float]] = {}
    for measured, at_length, numbers in ((timed, costs, _cost), (judged, qualities, _quality)):
        setting = largest(measured) if measured else None
        own = [row for row in rows if row.setting == setting]
        names = labels(own)
        for row in at_length(own):
            found.setdefault(names[row.strategy, row.variant], {}).update(numbers(row))
    return found


def _cost(row: Row) -> dict[str, float]:
    cost = row.record.cost
    if cost is None:
        return {}
    return _finite(tpot_ratio=cost.tpot_ratio.estimate, ttft_ratio=cost.ttft_ratio.estimate, kv_share=row.share)


def _quality(row: Row) -> dict[str, float]:
    quality = row.record.quality
    if quality is None:
        return {}
    recalled = accuracies(tasks_of(row, STRICTER))
    return _finite(
        recall=statistics.fmean(recalled) if recalled else None, text_nll=quality.text.nll if quality.text else None
    )


def _finite(**numbers: float | None) -> dict[str, float]:
    """JSON has no word for what is undefined: it is left out, and the table shows a dash."""
    return {name: round(value, DIGITS) for name, value in numbers.items() if value is not None and math.isfinite(value)}
