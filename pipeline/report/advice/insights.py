"""Key insights: what stands out over all techniques of one machine, each a rule over records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.advise.candidates import Candidate, Timed
from pipeline.advise.selection import Needs, select
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group
from pipeline.findings.means import PROTOCOL, SEED, STRICTER, accuracies, tasks_of
from pipeline.intervals import holm, sign_flip_p_values
from pipeline.report.advice.words import beside, part_of
from pipeline.report.sentences import point
from pipeline.report.tables import link

BOUNDS = (0.98, 0.9)  # of the full cache's recall: what may be called cheap
SMALL, LOSSY = 0.5, 0.9  # of the full cache's bytes, of its recall
RANDOM = "random_eviction"
N_FLIPS = 10_000
MOVED = 0.5  # of its bytes, from which a technique moves them elsewhere
DOMINATES = (
    "by another that holds no more bytes, keeps more recall beyond both intervals, and is not slower beyond both "
    "intervals, at every length that both were timed at"
)


def insights(found: Sequence[Candidate], full: Sequence[Row], reports_dir: Path) -> list[str]:
    """`found`: those with cost and quality, controls among them; `full`: records of the full cache."""
    own = [one for one in found if not one.is_control]
    return [
        *_cheapest(own, reports_dir),
        *_speeds(own, reports_dir),
        *_slow_parts(own, full),
        *_small_and_lossy(own),
        *_moved(own),
        *_protocols(own),
        *(said for protocol in reversed(PROTOCOL) for said in _over_random(found, protocol)),
        *_dominated(own),
        *_limits(full, reports_dir),
    ]


def _cheapest(own: Sequence[Candidate], reports_dir: Path) -> list[str]:
    """For each bound on recall the fewest bytes; bounds that the same technique answers share a sentence."""
    best = [(b, next(iter(select(own, Needs(min_recall=b, objective="memory")).fitting), None)) for b in BOUNDS]
    said = []
    for name, members in group(best, lambda pair: pair[1] and pair[1].name).items():
        bounds = " and with at least ".join(q.share(bound) for bound, _ in members)
        what = f"with at least {bounds} of the full cache's recall ({PROTOCOL[STRICTER]})"
        one = members[0][1]
        told = f"`{name}`, {beside(one, STRICTER, reports_dir)}" if one else "no technique"
        said.append(f"Fewest bytes {what}: {told}.")
    return said


def _at_each_point(own: Sequence[Candidate]) -> list[tuple[str, list[tuple[Candidate, Timed]]]]:
    """Where techniques were timed, as `4,096 tokens and batch 1`, with who was: the longest prompt first."""
    timed = [(one, cost) for one in own for cost in one.costs]
    points = group(sorted(timed, key=lambda pair: _longest_first(pair[1])), lambda pair: pair[1].row.point)
    return [(point(members[0][1].row), members) for members in points.values()]


def _longest_first(cost: Timed) -> tuple[int, int]:
    seq_len, batch = cost.row.point
    return -seq_len, batch


def _speeds(own: Sequence[Candidate], reports_dir: Path) -> list[str]:
    """Who decodes slower and faster than the full cache, at each length: a verdict at one says nothing of another."""
    said = []
    for where, timed in _at_each_point(own):
        for word in (verdicts.SLOWER, verdicts.FASTER):
            those = [pair for pair in timed if pair[1].verdict == word]
            those.sort(key=lambda pair: _step(pair[1]), reverse=word == verdicts.SLOWER)
            listed = q.words(_linked(one, cost, reports_dir) for one, cost in those) if those else "none"
            among = q.plural(len(timed), "technique")
            said.append(f"Decode steps found {word} than the full cache's at {where}, of {among} there: {listed}.")
    return said


def _linked(one: Candidate, cost: Timed, reports_dir: Path) -> str:
    return f"{link(cost.row, f'`{one.name}`', reports_dir)} ({q.ratio(_step(cost))})"


def _step(cost: Timed) -> float:
    return cost.decode.estimate if cost.decode else math.inf


def _slow_parts(own: Sequence[Candidate], full: Sequence[Row]) -> list[str]:
    """On which axis the techniques lie that slow decoding down, at each length, the one where most do first."""
    reference = full[0].config("strategy") if full else {}
    axes = [axis for axis, part in reference.items() if isinstance(part, dict) and axis != "cache"]
    said = []
    for where, timed in _at_each_point(own):
        counts = []
        for axis in axes:
            changing = [c for one, c in timed if part_of(one.row.config("strategy"), axis) != part_of(reference, axis)]
            n_slower = sum(cost.verdict == verdicts.SLOWER for cost in changing)
            if n_slower:
                told = f"{q.count(n_slower)} of {q.count(len(changing))} that change `{axis}`"
                counts.append((n_slower / len(changing), told))
        if counts:
            listed = q.words(told for _, told in sorted(counts, key=lambda item: -item[0]))
            said.append(f"Slower at {where}, by the part that differs from the full cache's: {listed}.")
    return said


def _small_and_lossy(own: Sequence[Candidate]) -> list[str]:
    """Who saves bytes, parted by whether recall survives it."""
    small = [(one, kept) for one in own if (kept := one.recall(STRICTER)) and one.share is not None
             and one.share <= SMALL]  # fmt: skip
    lossy = sorted((pair for pair in small if pair[1].estimate < LOSSY), key=lambda pair: pair[1].estimate)
    if not small:
        return [f"No technique holds {q.share(SMALL)} of the full cache's bytes or less."]
    named = q.words(f"`{one.name}` ({q.share(kept.estimate)})" for one, kept in lossy) if lossy else "none"
    return [
        f"Of {q.plural(len(small), 'technique')} that hold {q.share(SMALL)} of the full cache's bytes or less, those "
        f"that keep less than {q.share(LOSSY)} of its recall ({PROTOCOL[STRICTER]}): {named}."
    ]


def _moved(own: Sequence[Candidate]) -> list[str]:
    moved = [one for one in own if one.timed and one.timed.elsewhere > MOVED]
    named = (f"`{one.name}` ({q.share(one.timed.elsewhere)} of what it holds)" for one in moved if one.timed)
    return [f"Bytes that are moved out of the device are not saved, and count here as held: {q.words(named)}."] \
        if moved else []  # fmt: skip


def _protocols(own: Sequence[Candidate]) -> list[str]:
    """Where it matters whether the question was known: the two intervals of recall do not meet."""
    both = [
        (one, later, before) for one in own if (later := one.recall(STRICTER)) and (before := one.recall("query_aware"))
    ]
    apart = [item for item in both if item[2].low > item[1].high or item[1].low > item[2].high]
    if not both:
        return []
    apart.sort(key=lambda item: item[1].estimate - item[2].estimate)
    told = (f"`{one.name}` ({q.share(b.estimate)} before, {q.share(a.estimate)} later)" for one, a, b in apart)
    which = q.words(told) if apart else "none"
    return [
        "Whether the question is known before tokens are evicted, or comes later, changes recall beyond both intervals "
        f"for {q.count(len(apart))} of {q.plural(len(both), 'technique')}: {which}."
    ]


def _over_random(found: Sequence[Candidate], protocol: str) -> list[str]:
    """Those that evict by a score, item by item against chance at the same budget; corrected for how many there are."""
    chance = {one.judged.row.variant: one.judged.row for one in found if _base(one) == RANDOM and one.judged}
    rivals = [one for one in found if not one.is_control and one.judged and one.judged.row.variant in chance]
    compared = [(one, d) for one in rivals if one.judged
                and (d := _paired(one.judged.row, chance[one.judged.row.variant], protocol))]  # fmt: skip
    if not compared:
        return []
    adjusted = holm([sign_flip_p_values([d], N_FLIPS, SEED)[0] for _, d in compared])
    means = [sum(d) / len(d) for _, d in compared]
    words = [verdicts.corrected(mean, p) for mean, p in zip(means, adjusted, strict=True)]
    judged = sorted(zip(words, means, (one for one, _ in compared), strict=True), key=lambda item: -item[1])
    said = "; ".join(
        f"{word}: {q.words(f'`{one.name}` ({q.signed(mean)})' for _, mean, one in members)}"
        for word, members in group(judged, lambda item: item[0]).items()
    )
    return [f"Recall accuracy ({PROTOCOL[protocol]}) against evicting at random, at the same budget: {said}."]


def _base(one: Candidate) -> str:
    return one.row.strategy.partition("+")[0]


def _paired(own: Row, other: Row, protocol: str) -> list[float]:
    """Differences in accuracy item by item; empty where the two were not asked the same."""
    mine, theirs = tasks_of(own, protocol), tasks_of(other, protocol)
    same = own.cell.seq_len == other.cell.seq_len and [task.task for task in mine] == [task.task for task in theirs]
    pairs = list(zip(accuracies(mine), accuracies(theirs), strict=False)) if same else []
    return [one - another for one, another in pairs]


def _dominated(own: Sequence[Candidate]) -> list[str]:
    """Who is never the better choice; of several that beat it, the one that holds least is named."""
    beaten = [(min(winners, key=_share), one) for one in own if (winners := [by for by in own if _beats(by, one)])]
    if not beaten:
        return [f"No technique is dominated, {DOMINATES}."]
    said = "; ".join(
        f"by `{name}`: {q.words(f'`{one.name}`' for _, one in members)}"
        for name, members in group(beaten, lambda pair: pair[0].name).items()
    )
    return [f"Dominated, {DOMINATES}: {said}."]


def _beats(by: Candidate, one: Candidate) -> bool:
    """Where no length is shared, nothing is compared."""
    recalls = by.recall(STRICTER), one.recall(STRICTER)
    if not (recalls[0] and recalls[1] and recalls[0].low > recalls[1].high):
        return False
    theirs = {cost.row.point: cost for cost in one.costs}
    shared = [(cost, theirs[cost.row.point]) for cost in by.costs if cost.row.point in theirs]
    return bool(shared) and all(_holds_up(mine, other) for mine, other in shared)


def _holds_up(mine: Timed, other: Timed) -> bool:
    """Of two at the same length and batch; a single trial does not show that it is not slower."""
    if mine.decode is None or other.decode is None:
        return False
    return mine.share <= other.share and mine.decode.low <= other.decode.high


def _share(one: Candidate) -> float:
    return math.inf if one.share is None else one.share


def _limits(full: Sequence[Row], reports_dir: Path) -> list[str]:
    """Which ceiling the full cache comes nearer to, in decoding and in reading the prompt, at the longest length."""
    timed = [row for row in full if row.record.cost and row.record.predicted]
    if not timed:
        return []
    row = max(timed, key=lambda row: (row.cell.seq_len, -row.cell.batch))
    cost, predicted = row.record.cost, row.record.predicted
    assert cost and predicted
    own, flop_per_token = cost.technique, predicted.prefill_flop / row.cell.seq_len
    weights_read = predicted.decode_bytes_per_step - predicted.kv_bytes_held
    said = [
        _nearer("decoding", cost.decode_bandwidth_share, flop_per_token / own.tpot_s_p50 / cost.matmul_flop_per_s),
        _nearer("reading the prompt", weights_read / own.ttft_s_p50 / cost.copy_bandwidth_bytes_per_s,
                cost.prefill_flop_share),
    ]  # fmt: skip
    where = f"{link(row, q.count(row.cell.seq_len), reports_dir)} tokens on `{row.cell.model}`"
    return [f"With the full cache, at {where}: {'; '.join(said)}."]


def _nearer(phase: str, bandwidth: float, compute: float) -> str:
    """Shares of the copy bandwidth and of the matrix-product rate that were measured in the same process."""
    if not (math.isfinite(bandwidth) and math.isfinite(compute)):
        return f"{phase} was not measured against its ceilings"
    bound = "bandwidth than to computing" if bandwidth > compute else "computing than to bandwidth"
    return (
        f"{phase} comes nearer to the limit of {bound} ({q.share(bandwidth)} of the measured copy bandwidth and about "
        f"{q.share(compute)} of the measured matrix-product rate)"
    )
