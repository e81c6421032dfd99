"""Sentences of the model level. Each is a rule over records: change the records and the sentence changes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group
from pipeline.findings.means import STRICTER
from pipeline.record import Interval
from pipeline.report.models import reach, uptraining
from pipeline.report.models.architectures import (
    Architecture,
    at,
    beyond_trained,
    lengths,
    longest_timed,
    longest_trained,
    recall,
    text,
)
from pipeline.report.models.tables import asked_of, why_not
from pipeline.report.sentences import ORDER

Judged = tuple[str, str, Interval]  # name, word, difference or ratio
NOT_WORSE = (verdicts.BETTER, verdicts.NO_DIFFERENCE)
HASHED = "lsh"  # the pattern that drops nothing


def sentences(found: Sequence[Architecture]) -> list[str]:
    said = [_reference(found), *_held(found), *_recall(found), *_text(found), *_speed(found), *_formed(found)]
    said += [
        *reach.sentences(found),
        *(_extrapolated(found, n) for n in beyond_trained(found)),
        *uptraining.sentences(found),
        _not_judged(found),
    ]
    return [line for line in said if line]


def _reference(found: Sequence[Architecture]) -> str:
    names = [f"`{one.name}`" for one in found if one.is_reference]
    if not names:
        return "The reference has no record of its own here; every ratio and difference is to it all the same."
    return (
        f"Every ratio and difference is to {names[0]} with its own cache, measured anew beside each of the others. The "
        "same work takes it another time beside each, so that times compare within a row, and ratios between rows; a "
        "ratio is a mean over pairs of trials, times are medians, so that their quotient comes near it."
    )


def _held(found: Sequence[Architecture]) -> list[str]:
    """Who holds least at the longest length, whose bytes stay the same, and who holds least without losing recall."""
    longest, measured = longest_timed(found), lengths(found)
    held = {one.name: one.held[longest] for one in found if longest in one.held}
    if longest is None or len(held) < 2:
        return []
    shares = {one.name: row.share for one in found if (row := at(longest, one.timed))}
    least, *others = sorted(held, key=lambda name: (held[name], name))
    line = f"At {q.count(longest)} tokens `{least}` holds least, {_bytes(least, held, shares)}; then `{others[0]}`, "
    said = [f"{line}{_bytes(others[0], held, shares)}."]
    flat = [one.name for one in found if len(one.held) == len(measured) > 1 and len(set(one.held.values())) == 1]
    if flat:
        said.append(
            f"What {_names(flat)} {'holds' if len(flat) == 1 else 'hold'} is the same from {q.count(measured[0])} to "
            f"{q.count(longest)} tokens."
        )
    patterns = {one.name: one.shape.get("pattern") or {} for one in found if one.name in held}
    sparse = [name for name, pattern in patterns.items() if pattern.get("kind") not in (None, HASHED)]
    if sparse:
        said.append(
            f"What {_names(sparse)} may drop depends on how many tokens follow the prompt: "
            f"{'its cache is' if len(sparse) == 1 else 'their caches are'} told how many, as of a request whose answer "
            "is bounded, and told of more of them a pattern that looks far back holds more."
        )
    return [*said, *_least_without_loss(found, held, shares)]


def _least_without_loss(
    found: Sequence[Architecture], held: dict[str, int], shares: dict[str, float | None]
) -> list[str]:
    keeping = [name for name, word, _ in _recalls(found) if word in NOT_WORSE and name in held]
    if not keeping:
        return []
    best = min(keeping, key=lambda name: (held[name], name))
    return [f"Of those in which no loss of recall was found, `{best}` holds least: {_bytes(best, held, shares)}."]


def _bytes(name: str, held: dict[str, int], shares: dict[str, float | None]) -> str:
    return f"{q.data(held[name])} ({q.share(shares[name])} of the reference's)"


def _recalls(found: Sequence[Architecture]) -> list[Judged]:
    rows = _at_longest_trained(found)
    return [(name, verdicts.accuracy(own.difference), own.difference) for name, row in rows if (own := recall(row))]


def _at_longest_trained(found: Sequence[Architecture]) -> list[tuple[str, Row]]:
    seq_len = longest_trained(found)
    return [(one.name, row) for one in found if not one.is_reference and (row := at(seq_len, one.recalled))]


def _recall(found: Sequence[Architecture]) -> list[str]:
    if not (judged := _recalls(found)):
        return []
    seq_len = longest_trained(found)
    tasks = next(own.tasks for _, row in _at_longest_trained(found) if (own := recall(row)))
    asked = next(
        {task.task for task in row.record.quality.tasks if task.protocol == STRICTER}
        for _, row in _at_longest_trained(found)
        if row.record.quality
    )
    left_out = sorted(asked - {task.task for task in tasks})
    counted = q.words(q.task(task.task) for task in tasks)
    beyond = f"; not in it, as the reference cannot do it: {q.words(map(q.task, left_out))}" if left_out else ""
    return [f"Recall at {q.count(seq_len or 0)} tokens, mean over {counted}{beyond}. {_grouped(judged, q.signed)}."]


def _text(found: Sequence[Architecture]) -> list[str]:
    rows = [(name, own.nll_difference) for name, row in _at_longest_trained(found) if (own := text(row))]
    judged = [(name, verdicts.loss(difference), difference) for name, difference in rows]
    where = q.count(longest_trained(found) or 0)
    return [f"Loss on held-out text at {where} tokens, in nats. {_grouped(judged, _nats)}."] if judged else []


def _nats(value: float) -> str:
    return q.signed(value, 3)


def _speed(found: Sequence[Architecture]) -> list[str]:
    seq_len = longest_timed(found)
    rows = [(one, row) for one in found if not one.is_reference and (row := at(seq_len, one.timed))]
    judged = [
        (one.name, verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio), cost.tpot_ratio)
        for one, row in rows
        if (cost := row.record.cost)
    ]
    return [f"A decode step at {q.count(seq_len or 0)} tokens. {_grouped(judged, q.ratio)}."] if judged else []


def _formed(found: Sequence[Architecture]) -> list[str]:
    """How soon each architecture learned to look up at all."""
    solved = {one.name: one.story.solved_at_step for one in found if one.story and one.story.solved_at_step}
    if len(solved) < 2:
        return []
    by_step = group(sorted(solved, key=lambda name: (solved[name] or 0, name)), lambda name: solved[name] or 0)
    first, last = min(by_step), max(by_step)
    return [
        f"Recall formed first in {_names(by_step[first])}, at step {q.count(first)} of its training, and last in "
        f"{_names(by_step[last])}, at step {q.count(last)}; one seed each, so that an order of the others says little."
    ]


def _extrapolated(found: Sequence[Architecture], seq_len: int) -> str:
    """Who recalls most where none was trained, and what the reference does there."""
    asked = {one.name: asked_of(at(seq_len, one.recalled)) for one in found}
    means = {name: statistics.fmean(task.accuracy for task in own.values()) for name, own in asked.items() if own}
    if not means:
        return ""
    tasks = dict.fromkeys(q.task(task) for own in asked.values() for task in own)
    most = max(means.values())
    best = _names(name for name, mean in means.items() if mean == most)
    references = [one.name for one in found if one.is_reference and one.name in means]
    beside = "".join(f"; `{name}` {q.decimal(means[name])}" for name in references)
    return (
        f"Recall at {q.count(seq_len)} tokens, beyond the trained length, mean over {q.words(tasks)}: most in {best}, "
        f"{q.decimal(most)}{beside}. That is how a model extrapolates, and in no verdict on its cache."
    )


def _not_judged(found: Sequence[Architecture]) -> str:
    without = [one for one in found if not one.recalled]
    by_reason = group(without, why_not)
    said = [f"{reason}: {_names(one.name for one in members)}" for reason, members in by_reason.items()]
    return f"Without a quality, which is no bad quality: {'; '.join(said)}." if said else ""


def _grouped(judged: Iterable[Judged], write: Callable[[float], str]) -> str:
    """`Worse: a (−0.41) and b (−0.03); no difference found: c (+0.00)`"""
    ordered = sorted(judged, key=lambda one: (ORDER.index(one[1]), one[2].estimate))
    said = "; ".join(
        f"{word}: {q.words(f'`{name}` ({write(value.estimate)})' for name, _, value in members)}"
        for word, members in group(ordered, lambda one: one[1]).items()
    )
    return said[:1].upper() + said[1:]


def _names(names: Iterable[str]) -> str:
    return q.words(f"`{name}`" for name in names)
