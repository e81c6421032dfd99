"""Sentences that state results. Each is a rule over records: change the records and the sentence changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.record import Cost, Interval, TaskQuality
from pipeline.report import quantities as q
from pipeline.report import verdicts
from pipeline.report.evidence import Row, group
from pipeline.report.ranking import decode_speed, mean_difference, ranks, recall_loss, text_loss
from pipeline.report.tables import PROTOCOL, STATUS

Names = Mapping[tuple[str, str], str]
ORDER = (
    verdicts.FASTER,
    verdicts.SLOWER,
    verdicts.BETTER,
    verdicts.WORSE,
    verdicts.NO_DIFFERENCE,
    verdicts.UNDEFINED,
)


def statement(rows: Sequence[Row]) -> str:
    """What the report rests on."""
    machines = len({row.hardware_id for row in rows})
    strategies = len({row.strategy for row in rows})
    return (
        f"Computed from {q.plural(len(rows), 'record')} of {q.plural(machines, 'machine')} "
        f"({q.plural(strategies, 'technique')}): {status(rows)}."
    )


def level_title(level: str) -> str:
    return "Decode step against Transformers' DynamicCache" if level == "benchmark" else f"{level.capitalize()} level"


def status(rows: Sequence[Row]) -> str:
    counts = [f"{q.count(sum(row.record.status == key for row in rows))} {word}" for key, word in STATUS.items()]
    return q.words(counts)


def how_to_read() -> list[str]:
    return [
        f"A ratio compares a technique with the full cache, timed in turns in the same process: below {q.ratio(1)} is "
        f"{verdicts.FASTER}, above is {verdicts.SLOWER}. Brackets hold the 95 % interval.",
        f"The full cache is also timed against itself, which shows the noise. Where a technique's interval reaches "
        f"{q.ratio(1)} or that noise, the report says “{verdicts.NO_DIFFERENCE}”.",
        "*First token* is the time to read the prompt (TTFT), *decode step* the time for each token after it (TPOT). "
        "*KV held* is what the cache has allocated at the last step, *share* is that over the full cache's, and "
        "*noise* the full cache's interval against itself.",
        "Quality is measured on the evolving cache, item by item against the full cache; a difference is called one "
        f"only where its 95 % interval leaves zero out. *{PROTOCOL['query_aware']}*: the question was in the prompt "
        f"when the cache evicted; *{PROTOCOL['query_agnostic']}*: it came afterwards.",
    ]


def headlines(rows: Sequence[Row], names: Names) -> list[str]:
    """The comparison of one setting in a few lines: speed at the longest length of each batch, and quality."""
    batches = group((row for row in rows if row.record.cost), lambda row: row.cell.batch).values()
    recalled = [row for row in rows if recall_loss(row)]
    read = [row for row in rows if text_loss(row)]
    lines = [_speeds(_longest(members), names) for members in batches]
    lines += [_recalls(_longest(recalled), names)] if recalled else []
    lines += [_texts(_longest(read), names)] if read else []
    return lines or [nothing_measured(rows)]


def _longest(rows: Sequence[Row]) -> list[Row]:
    longest = max(row.cell.seq_len for row in rows)
    return [row for row in rows if row.cell.seq_len == longest]


def _speeds(rows: Sequence[Row], names: Names) -> str:
    judged = [(row, _decode(row.record.cost), decode_speed(row), q.ratio) for row in rows]
    return (
        f"Decode step at {point(rows[0])} against {_reference(rows)}: {_grouped(judged, names)}.{_fastest(rows, names)}"
    )


def _recalls(rows: Sequence[Row], names: Names) -> str:
    means = [(row, mean_difference(row.record.quality.tasks)) for row in rows if row.record.quality]
    judged = [(row, verdicts.accuracy(mean), mean, q.signed) for row, mean in means if mean]
    where = f"{q.count(rows[0].cell.seq_len)} tokens, mean over tasks and protocols"
    return f"Recall accuracy at {where}, against {_reference(rows)}: {_grouped(judged, names)}."


def _texts(rows: Sequence[Row], names: Names) -> str:
    judged = [(row, verdicts.loss(found), found, _nats) for row in rows if (found := text_loss(row))]
    where = f"{q.count(rows[0].cell.seq_len)} tokens"
    return f"Loss on held-out text at {where}, against {_reference(rows)}: {_grouped(judged, names)}."


def _grouped(judged: Iterable[tuple[Row, str, Interval | None, Callable[[float], str]]], names: Names) -> str:
    """`faster: a (0.41×) and b (0.43×); slower: c (9.00×)`"""
    ordered = sorted(judged, key=lambda item: (ORDER.index(item[1]), item[2].estimate if item[2] else 0.0))
    return "; ".join(
        f"{verdict}: "
        + q.words(f"{_name(row, names)} ({write(value.estimate)})" for row, _, value, write in members if value)
        for verdict, members in group(ordered, lambda item: item[1]).items()
    )


def _nats(value: float) -> str:
    return f"{q.signed(value, 3)} nats"


def _fastest(rows: Sequence[Row], names: Names) -> str:
    timed = [(row, ratio) for row in rows if (ratio := decode_speed(row))]
    ranked = zip(timed, ranks([ratio for _, ratio in timed]), strict=True)
    leaders = [item for item, rank in ranked if rank == 1]
    if len(leaders) == len(timed):
        return ""
    found = [_name(row, names) for row, _ in sorted(leaders, key=lambda item: item[1].estimate)]
    return f" Fastest {'was' if len(found) == 1 else 'were, with overlapping intervals,'} {q.words(found)}."


def _reference(rows: Sequence[Row]) -> str:
    return rows[0].setting.reference


def _name(row: Row, names: Names) -> str:
    return f"`{names[row.strategy, row.variant]}`"


def point(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} tokens and batch {q.count(row.cell.batch)}"


def paper(text: str) -> str:
    """A link where the paper is an address or an arXiv number, the text itself otherwise."""
    if text.startswith("http"):
        return f"[{text.split('//', 1)[1]}]({text})"
    return re.sub(r"(?:arXiv[: ]\s*)?(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def assessment(rows: Sequence[Row]) -> list[str]:
    """What the records of one technique in one setting say about speed, memory and quality."""
    timed = [row for row in rows if row.record.cost]
    judged = [row for row in rows if row.record.quality]
    lines = _speed_lines(timed) + _memory_lines(timed) + _recall_lines(judged) + _text_lines(judged)
    return lines + _beyond_training(rows) if lines else [nothing_measured(rows)]


def nothing_measured(rows: Sequence[Row]) -> str:
    return f"There is no measurement here: {status(rows)}."


def _speed_lines(rows: Sequence[Row]) -> list[str]:
    lines = []
    for members in group(rows, lambda row: row.cell.batch).values():
        lines.append(longest_cell(_longest(members)[-1]))
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
    if not shares:
        return []
    low, high = q.share(shares[0]), q.share(shares[-1])
    return [f"It held {low if low == high else f'between {low} and {high}'} of {_reference(rows)}'s bytes."]


def _recall_lines(rows: Sequence[Row]) -> list[str]:
    measured = [(row, task) for row in rows if row.record.quality for task in row.record.quality.tasks]
    if not measured:
        return []
    said = group(measured, lambda pair: verdicts.accuracy(pair[1].accuracy_difference))
    counts = [f"{verdict} in {q.count(len(pairs))}" for verdict, pairs in said.items()]
    summary = f"Recall against {_reference(rows)}, in {q.plural(len(measured), 'measurement')}: {', '.join(counts)}."
    return [summary, *_worst(said.get(verdicts.WORSE, []))]


def _worst(pairs: Sequence[tuple[Row, TaskQuality]]) -> list[str]:
    if not pairs:
        return []
    row, task = min(pairs, key=lambda pair: pair[1].accuracy_difference.estimate)
    where = f"{task.task.replace('_', ' ')} ({PROTOCOL[task.protocol]}) at {q.count(row.cell.seq_len)} tokens"
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
