"""Recall at equal bytes: each technique's measured budgets as one curve, compared item by item where curves overlap."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group, held_share, label
from pipeline.findings.means import N_RESAMPLES, PROTOCOL, SEED, STRICTER, accuracies, tasks_of
from pipeline.intervals import bootstrap, holm, sign_flip_p_values
from pipeline.record import Interval
from pipeline.report.tables import Table

SHARES = (0.125, 0.25, 0.5)  # of the full cache's bytes
N_FLIPS = 10_000
N_BUDGETS = 3  # with fewer it is a point of an axis, not a curve
N_NAMED = 4  # in a sentence; all are in the tables
STORAGE = ("encoding", "sharing", "placement")


@dataclass(frozen=True)
class Curve:
    """One technique: `accuracy` [P, N] of N items, means over tasks, at P shares of bytes in rising order."""

    name: str
    shares: list[float]
    accuracy: NDArray[np.float64]
    is_one_size: bool  # not a matter of budgets: its bytes are one place to compare at

    def at(self, share: float) -> NDArray[np.float64] | None:
        """Accuracy [N], interpolated over log(bytes); None outside of what was measured."""
        if not self.shares[0] <= share <= self.shares[-1]:
            return None
        shares = np.log(self.shares)
        return np.array([np.interp(np.log(share), shares, item) for item in self.accuracy.T])


@dataclass(frozen=True)
class Standing:
    """Who is where at one share: the best first, and how each differs from it."""

    share: float
    holder: str  # the technique that holds just this; empty for a round share
    protocol: str
    names: list[str]
    accuracy: list[Interval]
    verdict: list[str]  # against the first


def compared(rows: Sequence[Row]) -> list[Row]:
    """Those that make a curve, and those that hold their tokens in another way than the baseline."""
    strategies = group(rows, lambda row: row.strategy).values()
    return [row for members in strategies if len(members) >= N_BUDGETS or _is_one_size(members) for row in members]


def _is_one_size(rows: Sequence[Row]) -> bool:
    strategy, baseline = rows[0].config("strategy"), rows[0].config("baseline")
    otherwise = any(strategy.get(axis) != baseline.get(axis) for axis in STORAGE)
    return len(rows) < N_BUDGETS and (otherwise or not rows[0].variant)


def curves(rows: Sequence[Row], protocol: str) -> list[Curve]:
    found = [_curve(members, protocol) for members in group(compared(rows), lambda row: row.strategy).values()]
    return [curve for curve in found if curve]


def _curve(rows: Sequence[Row], protocol: str) -> Curve | None:
    tasks = [found for row in rows if (found := tasks_of(row, protocol))]
    points = sorted((share, accuracies(found)) for found in tasks if (share := held_share(found)))
    if not points:
        return None
    shares, items = zip(*points, strict=True)
    return Curve(label(rows[0].strategy), list(shares), np.array(items), _is_one_size(rows))


def standings(rows: Sequence[Row]) -> list[Standing]:
    """At the round shares under both protocols, and under the stricter one at what techniques of one size hold."""
    found = [standing(curves(rows, protocol), share, protocol) for protocol in reversed(PROTOCOL) for share in SHARES]
    own = curves(rows, STRICTER)
    sizes = sorted((curve.shares[0], curve.name) for curve in own if curve.is_one_size and curve.shares[0] < 1)
    found += [standing(own, share, STRICTER, holder=name) for share, name in sizes]
    return [item for item in found if item]


def standing(of: Sequence[Curve], share: float, protocol: str, holder: str = "") -> Standing | None:
    """None where fewer than two techniques were measured around this share."""
    there = [(curve.name, values) for curve in of if (values := curve.at(share)) is not None]
    if len(there) < 2:
        return None
    there.sort(key=lambda item: (-item[1].mean(), item[0]))
    verdict = _against_the_first([values for _, values in there])
    accuracy = [bootstrap(values.tolist(), N_RESAMPLES, SEED) for _, values in there]
    return Standing(share, holder, protocol, [name for name, _ in there], accuracy, verdict)


def _against_the_first(values: Sequence[NDArray[np.float64]]) -> list[str]:
    """The best one is chosen by the same data, so that the correction is over all pairs, not only those with it."""
    pairs = list(itertools.combinations(range(len(values)), 2))
    differences = [values[other] - values[one] for one, other in pairs]
    adjusted = holm(sign_flip_p_values([d.tolist() for d in differences], N_FLIPS, SEED))
    first = {other: (d, p) for (one, other), d, p in zip(pairs, differences, adjusted, strict=True) if one == 0}
    return ["", *(verdicts.corrected(float(d.mean()), p) for d, p in first.values())]


def sentence(of: Standing) -> str:
    """`At 25.0 % of the full cache's bytes, … recall is highest with a (…); no difference found: b (…); worse: …`"""
    holder = f", what `{of.holder}` holds" if of.holder else ""
    listed = list(zip(of.names, of.accuracy, of.verdict, strict=True))
    name, best, _ = listed[0]
    rest = "; ".join(
        f"{verdict}: {_listed([f'`{other}` ({q.decimal(value.estimate)})' for other, value, _ in members])}"
        for verdict, members in group(listed[1:], lambda item: item[2]).items()
    )
    return (
        f"At {q.share(of.share)} of the full cache's bytes{holder}, {PROTOCOL[of.protocol]} recall is highest with "
        f"`{name}` ({q.decimal_interval(best)}). Against it, {rest}."
    )


def _listed(names: Sequence[str]) -> str:
    """The best of them, and how many more there are."""
    more = len(names) - N_NAMED
    return q.words([*names[:N_NAMED], f"{q.plural(more, 'other')}"] if more > 1 else names)


def table(found: Sequence[Standing]) -> Table:
    """Techniques by their recall at the round shares; bold where no difference from the best was found."""
    at = [of for of in found if not of.holder]
    columns = [("Technique", "l"), *((f"{PROTOCOL[of.protocol]}, {q.share(of.share)}", "r") for of in at)]
    mean = {name: statistics.fmean(values) for name, values in _estimates(at).items()}
    names = sorted(mean, key=lambda name: (-mean[name], name))
    return Table(columns, [[f"`{name}`", *(_entry(of, name) for of in at)] for name in names])


def _estimates(found: Sequence[Standing]) -> Mapping[str, list[float]]:
    entries = ((name, value.estimate) for of in found for name, value in zip(of.names, of.accuracy, strict=True))
    return {name: [value for _, value in members] for name, members in group(entries, lambda item: item[0]).items()}


def _entry(of: Standing, name: str) -> str:
    if name not in of.names:
        return q.DASH
    index = of.names.index(name)
    text = q.decimal(of.accuracy[index].estimate)
    return f"**{text}**" if of.verdict[index] in ("", verdicts.NO_DIFFERENCE) else text


def how() -> str:
    return (
        "Between two measured budgets a technique is interpolated, item by item, over the logarithm of the bytes it "
        f"held; nothing is extrapolated. A difference is called one where it is at least {verdicts.RELEVANT} of "
        "accuracy, and a test that flips the signs of the items' differences at random rejects chance at "
        f"{q.share(verdicts.ALPHA)}, corrected (Holm) over all pairs at that share of bytes."
    )
