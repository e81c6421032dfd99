"""From an interval to a word. These rules are the only place where a difference is called one."""

from __future__ import annotations

import math

from pipeline.record import Interval, TaskQuality

FASTER, SLOWER = "faster", "slower"
BETTER, WORSE = "better", "worse"
STEADIER, UNSTEADIER = "steadier", "less steady"
NO_DIFFERENCE = "no difference found"
UNDECIDED = "undecided"
ONE_SAMPLE = "one sample"
UNDEFINED = "undefined"
NOT_ANSWERED = "not answered by the full cache either"
ANSWERED = 0.5  # accuracy of the full cache below which a task says nothing about a cache
ALPHA = 0.05  # the chance of any false difference among those that are tested together
RELEVANT = 0.02  # of accuracy; the same tiny shift in every item is sure, and yet nothing
RELEVANT_SPEED = 0.02  # of the reference's time; where steps are steady, less than that is sure, and yet nothing
TOO_WIDE = 2.0  # high over low of a stretched ratio; one that holds 1 and as much beside it says nothing
DECIMALS = 3  # a difference in quality that vanishes when it is written is rounding in the arithmetic, not a loss


def speed(ratio: Interval, noise: Interval | None) -> str:
    """A ratio to the full cache counts only outside both 1 and the full cache's ratio to itself, and by what matters.

    No `noise` where a single trial was made.
    """
    if noise is None:
        return ONE_SAMPLE
    if why := _unusable(ratio, noise):
        return why
    low, high = min(noise.low, 1.0), max(noise.high, 1.0)
    if low <= ratio.high and ratio.low <= high:
        # Stretched by the noise it holds 1, and says that times are alike only if it says how far.
        return UNDECIDED if ratio.high * high > TOO_WIDE * ratio.low * low else NO_DIFFERENCE
    if abs(ratio.estimate - 1) < RELEVANT_SPEED:
        return NO_DIFFERENCE
    return FASTER if ratio.estimate < 1 else SLOWER


def stability(spread: Interval, full: Interval, full_again: Interval) -> str:
    """Two spreads differ where their intervals do not meet, and by more than the same work does from itself."""
    if why := _unusable(spread, full, full_again):
        return why
    by_chance = abs(spread.estimate - full.estimate) <= abs(full_again.estimate - full.estimate)
    if by_chance or (spread.low <= full.high and full.low <= spread.high):
        return NO_DIFFERENCE
    return STEADIER if spread.estimate < full.estimate else UNSTEADIER


def answered(task: TaskQuality) -> bool:
    """Whether the model can do the task at all: what it cannot, no cache can spoil."""
    return task.accuracy_full >= ANSWERED


def recall(task: TaskQuality) -> str:
    """Of one task: by its interval and by the signs of its items, as few that differ make an interval too sure."""
    if not answered(task):
        return NOT_ANSWERED
    word = accuracy(task.accuracy_difference)
    by_chance = word in (BETTER, WORSE) and _sign_p_value(task) > ALPHA
    return NO_DIFFERENCE if by_chance else word


def _sign_p_value(task: TaskQuality) -> float:
    """Two-sided and exact: that of the items which differ at all so many do to one side."""
    signs = [own > full for own, full in zip(task.items.correct, task.items.correct_full, strict=True) if own != full]
    most = max(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * sum(math.comb(len(signs), k) for k in range(most, len(signs) + 1)) / 2 ** len(signs))


def accuracy(difference: Interval) -> str:
    """Technique - full, in accuracy: above 0 is better."""
    return _signed(difference, BETTER, WORSE)


def corrected(difference: float, p_value: float) -> str:
    """One of many differences in accuracy, by its p-value after the correction for how many there are."""
    by_chance = p_value > ALPHA or abs(difference) < RELEVANT
    return NO_DIFFERENCE if by_chance else BETTER if difference > 0 else WORSE


def loss(difference: Interval) -> str:
    """Technique - full, in nats: above 0 is worse."""
    return _signed(difference, WORSE, BETTER)


def rounded(value: Interval) -> Interval:
    ends = {end: round(getattr(value, end), DECIMALS) for end in ("estimate", "low", "high")}
    return Interval(n=value.n, **ends)


def _signed(difference: Interval, above: str, below: str) -> str:
    if why := _unusable(difference):
        return why
    shown = rounded(difference)
    return above if shown.low > 0 else below if shown.high < 0 else NO_DIFFERENCE


def _unusable(*intervals: Interval) -> str:
    """Why no verdict is possible; empty where one is. An `n` of 0 means exact."""
    if any(math.isnan(v) for i in intervals for v in (i.estimate, i.low, i.high)):
        return UNDEFINED
    return ONE_SAMPLE if any(i.n == 1 for i in intervals) else ""
