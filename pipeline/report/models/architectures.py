"""Records of the model level by architecture, each with the story of its training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.findings.evidence import Row, Setting, group
from pipeline.findings.means import N_RESAMPLES, SEED, STRICTER, accuracies, mean_difference, tasks_of
from pipeline.intervals import bootstrap
from pipeline.record import Interval, TaskQuality, TextQuality
from pipeline.report.models import stories
from pipeline.report.models.stories import Story


@dataclass(frozen=True)
class Architecture:
    """All that one machine measured of one model."""

    name: str
    rows: list[Row]
    story: Story | None
    is_reference: bool  # what all ratios and differences are to

    @property
    def timed(self) -> list[Row]:
        """Shortest first."""
        return sorted((row for row in self.rows if row.record.cost), key=lambda row: row.cell.seq_len)

    @property
    def recalled(self) -> list[Row]:
        """Rows of quality, shortest first."""
        return sorted((row for row in self.rows if row.record.quality), key=lambda row: row.cell.seq_len)

    @property
    def shape(self) -> dict[str, Any]:
        return self.rows[0].config("model").get("config") or {}

    @property
    def held(self) -> dict[int, int]:
        """Prompt tokens -> bytes of keys, values and states after the last step."""
        return {row.cell.seq_len: row.record.cost.technique.kv_bytes_held[-1] for row in self.timed if row.record.cost}

    @property
    def predicted_per_token(self) -> int | None:
        found = [row.record.predicted for row in self.timed if row.record.predicted]
        return found[-1].kv_bytes_per_token if found else None

    @property
    def held_per_token(self) -> float | None:
        """Between the two longest lengths; None where there is only one."""
        if len(self.held) < 2:
            return None
        (near, less), (far, more) = list(self.held.items())[-2:]
        return (more - less) / (far - near)


def at(seq_len: int | None, rows: Iterable[Row]) -> Row | None:
    return next((row for row in rows if row.cell.seq_len == seq_len), None)


def setting_of(row: Row) -> Setting:
    """What architectures must share to stand in one table."""
    return replace(row.setting, model="", workload="", baseline="", n_new_tokens=0)


def title(setting: Setting) -> str:
    return f"machine `{setting.hardware_id}` ({setting.dtype}, {setting.device}, seed {setting.seed})"


def architectures(rows: Sequence[Row]) -> list[Architecture]:
    """The reference first, then from those that hold most at their longest length to those that hold least."""
    reference = reference_of(rows)
    found = [
        Architecture(name, members, stories.read(_path(members)), name == reference)
        for name, members in group(rows, lambda row: row.cell.model).items()
    ]
    return sorted(found, key=lambda one: (not one.is_reference, -max(one.held.values(), default=0), one.name))


def reference_of(rows: Iterable[Row]) -> str:
    """The model beside which all were measured, as the records name it."""
    named = ((row.config("level").get("reference") or {}).get("name") for row in rows)
    return next((str(name) for name in named if name), "")


def _path(rows: Iterable[Row]) -> str:
    named = (row.config("model").get("path") for row in rows)
    return next((str(path) for path in named if path), "")


def longest_timed(found: Iterable[Architecture]) -> int | None:
    return max((row.cell.seq_len for one in found for row in one.timed), default=None)


def longest_trained(found: Iterable[Architecture]) -> int | None:
    """Where quality is compared: beyond the trained length it would be extrapolation."""
    return max((r.cell.seq_len for one in found for r in one.recalled if r.in_trained_length), default=None)


def beyond_trained(found: Iterable[Architecture]) -> list[int]:
    """Where quality says how a model extrapolates, and nothing about its cache."""
    return sorted({row.cell.seq_len for one in found for row in one.recalled if not row.in_trained_length})


def lengths(found: Iterable[Architecture]) -> list[int]:
    return sorted({seq_len for one in found for seq_len in one.held})


@dataclass(frozen=True)
class Recall:
    """Mean over the tasks that the reference can do, over the same items."""

    tasks: list[TaskQuality]
    accuracy: Interval
    difference: Interval  # to the reference


def recall(row: Row | None) -> Recall | None:
    """None without quality, and where the reference can do no task."""
    tasks = tasks_of(row, STRICTER) if row else []
    gain = mean_difference(tasks)
    return Recall(tasks, bootstrap(accuracies(tasks), N_RESAMPLES, SEED), gain) if gain else None


def text(row: Row | None) -> TextQuality | None:
    return row.record.quality.text if row and row.record.quality else None
