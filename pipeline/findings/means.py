"""What is computed from the raw samples of a record: means over tasks, and how steady the steps were."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.findings import verdicts
from pipeline.findings.evidence import Row
from pipeline.intervals import bootstrap
from pipeline.record import Interval, TaskQuality

PROTOCOL = {"query_aware": "query-aware", "query_agnostic": "query-agnostic"}
STRICTER = "query_agnostic"  # the protocol that techniques are ranked by
N_RESAMPLES = 2000
SEED = 0
ZERO = {"estimate": 0.0, "low": 0.0, "high": 0.0}


def recall_loss(row: Row) -> Interval | None:
    """Accuracy lost against the full cache under the stricter protocol, mean over tasks; 0 is as good as it."""
    gain = recall_gain(row)
    return gain and negated(gain)


def recall_gain(row: Row) -> Interval | None:
    """None beyond the trained length too: there a cell is about cost only."""
    tasks = row.record.quality.tasks if row.record.quality and row.in_trained_length else []
    return mean_difference(answered(tasks, STRICTER))  # verdicts round it, and who writes it does so once


def text_loss(row: Row) -> Interval | None:
    text = row.record.quality.text if row.record.quality and row.in_trained_length else None
    return verdicts.rounded(text.nll_difference) if text else None


def answered(tasks: Iterable[TaskQuality], protocol: str) -> list[TaskQuality]:
    """The tasks of one protocol that count: those that the full cache can do."""
    return [task for task in tasks if task.protocol == protocol and verdicts.answered(task)]


def mean_difference(tasks: Sequence[TaskQuality]) -> Interval | None:
    """Accuracy difference, mean over tasks, by a bootstrap over items: item i of every task is one unit."""
    differences = [
        [own - full for own, full in zip(task.items.correct, task.items.correct_full, strict=True)] for task in tasks
    ]
    units = tuple(statistics.fmean(unit) for unit in zip(*differences, strict=True))
    return _bootstrap(units) if units else None


@cache
def _bootstrap(units: tuple[float, ...]) -> Interval:
    """Many parts of a report ask for the interval of the same record."""
    return bootstrap(units, N_RESAMPLES, SEED)


def tasks_of(row: Row, protocol: str) -> list[TaskQuality]:
    """Those that count, of a record that may have none."""
    return answered(row.record.quality.tasks, protocol) if row.record.quality else []


def accuracies(tasks: Sequence[TaskQuality]) -> list[float]:
    """Of each item the mean over tasks; empty without tasks."""
    return [statistics.fmean(item) for item in zip(*(task.items.correct for task in tasks), strict=True)]


def differs(row: Row) -> bool:
    """Whether any recall task came out otherwise than with the full cache, at the decimals that are shown."""
    tasks = row.record.quality.tasks if row.record.quality else []
    return any(
        verdicts.rounded(difference) != verdicts.rounded(difference).model_copy(update=ZERO)
        for task in tasks
        for difference in (task.accuracy_difference, task.nll_difference)
    )


def spread(samples: Sequence[float], percentile: float = 90) -> Interval | None:
    """p90 (or another percentile) over p50, with an interval; None for fewer than two samples."""
    return _spread(tuple(samples), percentile)


@cache
def _spread(samples: tuple[float, ...], percentile: float) -> Interval | None:
    def over_middle(values: NDArray[np.float64]) -> NDArray[np.float64]:
        middle, tail = np.percentile(values, [50, percentile], axis=-1)
        return tail / middle

    return _resampled(samples, over_middle)


def variation(samples: Sequence[float]) -> Interval | None:
    """Standard deviation over mean, with an interval; None for fewer than two samples."""
    return _resampled(samples, lambda values: values.std(axis=-1) / values.mean(axis=-1))


def _resampled(
    samples: Sequence[float], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Interval | None:
    """A bootstrap interval over the samples; `statistic` goes over the last axis."""
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2 or not (values > 0).all():
        return None
    drawn = np.random.default_rng(SEED).integers(0, len(values), size=(N_RESAMPLES, len(values)))
    low, high = (float(end) for end in np.percentile(statistic(values[drawn]), [2.5, 97.5]))
    estimate = float(statistic(values))
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), n=len(values))


def shifted(value: Interval, by: float) -> Interval:
    """A difference on the scale of what it is a difference from."""
    return Interval(estimate=value.estimate + by, low=value.low + by, high=value.high + by, n=value.n)


def negated(value: Interval) -> Interval:
    return Interval(estimate=-value.estimate, low=-value.high, high=-value.low, n=value.n)
