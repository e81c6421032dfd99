"""Sentences about techniques beside the full cache. Change the records and the sentence changes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, changes, fullest, group
from pipeline.findings.means import PROTOCOL, STRICTER, differs, recall_gain, text_loss
from pipeline.findings.orders import ranks
from pipeline.record import Cost, TaskQuality
from pipeline.report.ranking import decode_speed
from pipeline.report.sentences import Names, grouped, named, nothing_measured, point
from pipeline.report.tokens.tables import timed_once


def technique_title(row: Row) -> str:
    """Its title, with what the command line changed of the published point."""
    title, changed = str(row.config("strategy").get("title") or row.cell.strategy), changes(row.strategy)
    return f"{title} with {q.words(changed)}" if changed else title


def headlines(rows: Sequence[Row], names: Names) -> list[str]:
    """The comparison of one setting in a few lines: speed at one length of each batch, and quality."""
    batches = group((row for row in rows if row.record.cost), lambda row: row.cell.batch)
    recalled = [row for row in rows if recall_gain(row)]
    read = [row for row in rows if text_loss(row)]
    shared = [_shared([row for row in rows if row.cell.batch == batch], members) for batch, members in batches.items()]
    lines = [f"{_reference_times(found)} {_speeds(found, names)}" for found in shared]
    lines += [_recalls(_shared(rows, recalled), names)] if recalled else []
    lines += [_texts(_shared(rows, read), names)] if read else []
    return lines or [nothing_measured(rows)]


def once(rows: Sequence[Row]) -> list[str]:
    """Where the tables of these rows have no verdict on first tokens, and why."""
    points = group((row for row in rows if row.record.cost), lambda row: row.point).values()
    where = "; ".join(point(members[0]) for members in points if timed_once(members))
    return [f"First tokens were timed in a single trial each, which is no verdict, at {where}."] if where else []


def _shared(rows: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """Those of `measured` at the point that most techniques share."""
    there = {id(row) for row in fullest(rows, measured)}
    return [row for row in measured if id(row) in there]


def longest(rows: Sequence[Row]) -> list[Row]:
    seq_len = max(row.cell.seq_len for row in rows)
    return [row for row in rows if row.cell.seq_len == seq_len]


def _reference_times(rows: Sequence[Row]) -> str:
    """Each technique is timed beside its own reference; the middle one of these stands for all."""
    arms = [row.record.cost.full for row in rows if row.record.cost]
    step, first = (statistics.median(getattr(arm, name) for arm in arms) for name in ("tpot_s_p50", "ttft_s_p50"))
    reference = _reference(rows)
    return (
        f"At {point(rows[0])}, {reference} took {q.seconds(step)} for a decode step and {q.seconds(first)} for the "
        f"first token, and held {q.data(arms[0].kv_bytes_held[-1])}."
    )


def _speeds(rows: Sequence[Row], names: Names) -> str:
    judged = [(row, _decode(row.record.cost), decode_speed(row), q.ratio) for row in rows]
    return f"Decode steps against that: {grouped(judged, names)}.{_fastest(rows, names)}"


def _recalls(rows: Sequence[Row], names: Names) -> str:
    judged = [(row, verdicts.accuracy(gain), gain, q.signed) for row in rows if (gain := recall_gain(row))]
    where = f"{q.count(rows[0].cell.seq_len)} tokens, {PROTOCOL[STRICTER]}, mean over tasks"
    return f"Recall accuracy at {where}, against {_reference(rows)}: {grouped(judged, names)}."


def _texts(rows: Sequence[Row], names: Names) -> str:
    judged = [(row, verdicts.loss(found), found, _nats) for row in rows if (found := text_loss(row))]
    where = f"{q.count(rows[0].cell.seq_len)} tokens"
    return f"Loss on held-out text at {where}, against {_reference(rows)}: {grouped(judged, names)}."


def _nats(value: float) -> str:
    return f"{q.signed(value, 3)} nats"


def _fastest(rows: Sequence[Row], names: Names) -> str:
    timed = [(row, ratio) for row in rows if (ratio := decode_speed(row)) and ratio.n != 1]
    ranked = zip(timed, ranks([ratio for _, ratio in timed]), strict=True)
    leaders = [item for item, rank in ranked if rank == 1]
    if len(leaders) == len(timed):
        return ""
    found = [named(row, names) for row, _ in sorted(leaders, key=lambda item: item[1].estimate)]
    return f" Fastest {'was' if len(found) == 1 else 'were, with overlapping intervals,'} {q.words(found)}."


def _reference(rows: Sequence[Row]) -> str:
    return rows[0].setting.reference


def assessment(rows: Sequence[Row]) -> list[str]:
    """What the records of one technique in one setting say about speed, memory and quality."""
    timed = [row for row in rows if row.record.cost]
    judged = [row for row in rows if row.record.quality]
    lines = _speed_lines(timed) + _memory_lines(timed) + _recall_lines(judged) + _text_lines(judged)
    return lines + _beyond_training(rows) if lines else [nothing_measured(rows)]


def _speed_lines(rows: Sequence[Row]) -> list[str]:
    """The longest length of each batch in full; the others, if there are any, by their verdicts."""
    lines = []
    for members in group(rows, lambda row: row.cell.batch).values():
        lines.append(longest_cell(longest(members)[-1]))
        if len(members) == 1:
            continue
        batch = q.count(members[0].cell.batch)
        lines.append(f"Decode at batch {batch}: {_by_length(members, _decode)}.")
        lines.append(f"First token at batch {batch}: {_by_length(members, _first)}.")
    return lines


def longest_cell(row: Row) -> str:
    cost = row.record.cost
    if cost is None:
        return ""
    return (
        f"At {point(row)}, a decode step took {q.ratio_interval(cost.tpot_ratio)} of {_reference([row])}'s "
        f"({_decode(cost)}), the first token {q.ratio_interval(cost.ttft_ratio)} ({_first(cost)}), "
        f"and the cache held {q.share(row.share)} of its bytes."
    )


def _decode(cost: Cost | None) -> str:
    return verdicts.speed(cost.tpot_ratio, cost.aa_tpot_ratio) if cost else verdicts.UNDEFINED


def _first(cost: Cost | None) -> str:
    return verdicts.speed(cost.ttft_ratio, cost.aa_ttft_ratio) if cost else verdicts.UNDEFINED


def _by_length(rows: Iterable[Row], judge: Callable[[Cost | None], str]) -> str:
    """`faster at 2,048 and 4,096 tokens; no difference found at 512 tokens`"""
    said = group(rows, lambda row: judge(row.record.cost))
    return "; ".join(f"{verdict} at {_lengths(members)} tokens" for verdict, members in said.items())


def _lengths(rows: Iterable[Row]) -> str:
    return q.words(q.count(n) for n in sorted({row.cell.seq_len for row in rows}))


def _memory_lines(rows: Sequence[Row]) -> list[str]:
    shares = sorted(row.share for row in rows if row.share is not None)
    if len(shares) < 2:
        return []
    low, high = q.share(shares[0]), q.share(shares[-1])
    held = low if low == high else f"between {low} and {high}"
    return [f"Over all lengths and batches it held {held} of {_reference(rows)}'s bytes."]


def _recall_lines(rows: Sequence[Row]) -> list[str]:
    measured = [(row, task) for row in rows if row.record.quality for task in row.record.quality.tasks]
    if not measured:
        return []
    if not any(differs(row) for row in rows):
        n = q.plural(len(measured), "measurement")
        return [f"Recall was that of {_reference(rows)} to {verdicts.DECIMALS} decimals in all of {n}."]
    said = group(measured, lambda pair: verdicts.recall(pair[1]))
    counts = [f"{verdict} in {q.count(len(pairs))}" for verdict, pairs in said.items()]
    summary = f"Recall against {_reference(rows)}, in {q.plural(len(measured), 'measurement')}: {', '.join(counts)}."
    return [summary, *_worst(said.get(verdicts.WORSE, []))]


def _worst(pairs: Sequence[tuple[Row, TaskQuality]]) -> list[str]:
    if not pairs:
        return []
    row, task = min(pairs, key=lambda pair: pair[1].accuracy_difference.estimate)
    where = f"{q.task(task.task)} ({PROTOCOL[task.protocol]}) at {q.count(row.cell.seq_len)} tokens"
    return [f"The largest loss was in {where}: {q.decimal(task.accuracy)} against {q.decimal(task.accuracy_full)}."]


def _text_lines(rows: Sequence[Row]) -> list[str]:
    measured = [(row, text) for row in rows if row.record.quality and (text := row.record.quality.text)]
    if not measured:
        return []
    said = group(measured, lambda pair: verdicts.loss(pair[1].nll_difference))
    parts = [
        f"{verdict} at {_lengths(row for row, _ in pairs)} tokens (loss "
        f"{q.words(q.signed(text.nll_difference.estimate, 3) for _, text in pairs)} nats)"
        for verdict, pairs in said.items()
    ]
    return [f"Held-out text against {_reference(rows)}: {'; '.join(parts)}."]


def _beyond_training(rows: Iterable[Row]) -> list[str]:
    beyond = [row for row in rows if row.trained_length is not None and row.cell.seq_len > row.trained_length]
    return [
        f"The context of {_lengths(members)} tokens is beyond the {q.count(trained or 0)} tokens that "
        f"`{members[0].cell.model}` was trained on: its speed and memory count, what it says there is extrapolation."
        for trained, members in group(beyond, lambda row: row.trained_length).items()
    ]
