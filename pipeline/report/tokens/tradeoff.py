"""Time against quality: the decode step of each technique beside the recall that it loses, on one machine.

Time and quality are measured at different points, mostly on different models: a large one with random weights shows
what a step costs, a small trained one what is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.advise.candidates import CONTROLS
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, Setting, changes, fullest, group, labels
from pipeline.findings.means import PROTOCOL, STRICTER, recall_gain, recall_loss
from pipeline.record import Interval
from pipeline.report.ranking import decode_speed
from pipeline.report.tables import Table


@dataclass(frozen=True)
class Both:
    """One technique: its row of time and its row of quality, at the same budget."""

    name: str
    timed: Row
    judged: Row

    @property
    def step(self) -> Interval:
        ratio = decode_speed(self.timed)
        assert ratio, "only timed rows are paired"
        return ratio

    @property
    def loss(self) -> Interval:
        lost = recall_loss(self.judged)
        assert lost, "only judged rows are paired"
        return lost

    @property
    def is_control(self) -> bool:
        """Measured to be compared with, and nothing to use."""
        strategy = self.timed.strategy
        return bool({strategy.partition("+")[0], *changes(strategy)} & CONTROLS)

    @property
    def speed(self) -> str:
        cost = self.timed.record.cost
        return verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio) if cost else verdicts.UNDEFINED

    @property
    def recall(self) -> str:
        gain = recall_gain(self.judged)
        return verdicts.accuracy(gain) if gain else verdicts.UNDEFINED


def tradeoffs(rows: Sequence[Row]) -> Iterator[tuple[Setting, list[Both]]]:
    """For each machine the setting of time, and its techniques that were judged too; at least two."""
    for members in group(rows, lambda row: row.hardware_id).values():
        timed = _most([row for row in members if decode_speed(row)])
        judged = {(row.strategy, row.variant): row for row in _most([row for row in members if recall_gain(row)])}
        names = labels(timed)
        found = [Both(names[key], row, judged[key]) for row in timed if (key := (row.strategy, row.variant)) in judged]
        if len(found) > 1:
            yield timed[0].setting, found


def _most(rows: Sequence[Row]) -> list[Row]:
    """At one point of one setting: where most techniques are, and of several at the longest."""
    places = [fullest(members, members) for members in group(rows, lambda row: row.setting).values()]
    return max(places, key=lambda found: (len(found), found[0].cell.seq_len), default=[])


def title(found: Sequence[Both]) -> str:
    timed, judged = found[0].timed.cell, found[0].judged.cell
    return f"Time against quality: decode steps on `{timed.model}`, recall on `{judged.model}`"


def where(found: Sequence[Both]) -> str:
    timed, judged = found[0].timed.cell, found[0].judged.cell
    return (
        f"decode step at {q.count(timed.seq_len)} tokens and batch {q.count(timed.batch)} on {timed.model}, "
        f"{PROTOCOL[STRICTER]} recall at {q.count(judged.seq_len)} tokens on {judged.model}"
    )


def sentences(found: Sequence[Both]) -> list[str]:
    """What is compared, and who is faster without a loss."""
    timed, judged = found[0].timed.cell, found[0].judged.cell
    best = [
        one for one in found if not one.is_control and one.speed == verdicts.FASTER and one.recall != verdicts.WORSE
    ]
    named = q.words(f"`{one.name}` ({q.ratio(one.step.estimate)}, {q.signed(-one.loss.estimate)})" for one in best)\
        if best else "none"  # fmt: skip
    models = "" if timed.model == judged.model else ", of two models: a time of the one, a recall of the other"
    said = where(found)
    return [
        f"{said[0].upper()}{said[1:]}{models}.",
        f"Faster than {found[0].timed.setting.reference} with no loss of recall found, controls apart: {named}.",
    ]


def table(found: Sequence[Both]) -> Table:
    """Names by both verdicts."""
    speeds, recalls = (list(dict.fromkeys(words)) for words in ([b.speed for b in found], [b.recall for b in found]))
    columns = [("Decode step", "l"), *((f"Recall: {word}", "l") for word in recalls)]
    cells = group(found, lambda one: (one.speed, one.recall))
    lines = [
        [speed, *(", ".join(f"`{one.name}`" for one in cells.get((speed, word), [])) or q.DASH for word in recalls)]
        for speed in speeds
    ]
    return Table(columns, lines)
