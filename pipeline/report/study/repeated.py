"""An earlier study beside its repetition: what it said from conf/study.yaml, what is found now from records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline import study
from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import Row, group
from pipeline.findings.means import spread, variation
from pipeline.findings.orders import ranks
from pipeline.record import Cost, Interval
from pipeline.report.tables import STATUS, Table
from pipeline.study import Setting

AGREES, CONTRADICTS, OTHER_SIZE = "agrees", "contradicts", "same direction, other size"
MORE, LESS = "more", "less"
NOT_MEASURED = "not measured"
SETS = {"run": "What the study ran", "described": "What the study described and never ran"}
DECIMALS = 3  # of a ratio of bytes


@dataclass(frozen=True)
class Repeated:
    """One setting of the study and its record on one model and machine, if there is one."""

    setting: Setting
    row: Row | None

    @property
    def cost(self) -> Cost | None:
        return self.row.record.cost if self.row else None

    @property
    def name(self) -> str:
        budget = self.setting.point.get("kv_budget")
        return self.setting.strategy if budget is None else f"{self.setting.strategy} {budget}"


def repeated(rows: Sequence[Row]) -> list[Repeated]:
    """Every setting of the study; `rows` are of one model and machine."""
    found = study.read().rows
    return [Repeated(s, next((row for row in rows if s.is_in(row.record)), None)) for s in found]


def decode(earlier: study.Range, ratio: Interval, noise: Interval) -> str:
    """What the study said of the time of a step, against what is found now."""
    now = verdicts.speed(ratio, noise)
    if now in (verdicts.UNDECIDED, verdicts.ONE_SAMPLE, verdicts.UNDEFINED):
        return now
    low, high = _ends(earlier)
    inside = ratio.low <= high and ratio.high >= low
    return _against(now, verdicts.SLOWER if low >= 1 else verdicts.FASTER, inside=inside)


def memory(earlier: study.Memory, cost: Cost) -> str:
    """The same of bytes, which are counted and have no noise."""
    ratio = round(peak_share(cost) if earlier.of == "peak" else held_share(cost), DECIMALS)
    low, high = _ends(earlier.ratio)
    now = MORE if ratio > 1 else LESS if ratio < 1 else verdicts.NO_DIFFERENCE
    return _against(now, MORE if low >= 1 else LESS, inside=low <= ratio <= high)


def _against(now: str, earlier: str, *, inside: bool) -> str:
    """`inside`: what is found now leaves the earlier size possible."""
    if now == verdicts.NO_DIFFERENCE:
        return verdicts.NO_DIFFERENCE if inside else CONTRADICTS
    if now != earlier:
        return CONTRADICTS
    return AGREES if inside else OTHER_SIZE


def _ends(earlier: study.Range) -> tuple[float, float]:
    low, high = earlier
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def held_share(cost: Cost) -> float:
    return cost.technique.kv_bytes_held[-1] / cost.full.kv_bytes_held[-1]


def peak_share(cost: Cost) -> float:
    return max(cost.technique.step_peak_memory_bytes) / max(cost.full.step_peak_memory_bytes)


def tables(found: Sequence[Repeated]) -> Iterator[tuple[str, Table]]:
    columns = [("Setting", "l"), ("Earlier", "l"), ("Decode step now", "r"), ("The earlier time", "l")]
    columns += [("KV held", "r"), ("Peak memory", "r"), ("The earlier memory", "l")]
    for name, members in group(found, lambda one: one.setting.set).items():
        lines = [[f"{one.setting.title} (`{one.name}`)", one.setting.earlier.said, *_now(one)] for one in members]
        yield f"{SETS[name]}, and what is found now as ratios to the full cache", Table(columns, lines)


def _now(one: Repeated) -> list[str]:
    if (cost := one.cost) is None:
        return [STATUS[one.row.record.status] if one.row else NOT_MEASURED, *[q.DASH] * 4]
    earlier = one.setting.earlier
    return [
        q.ratio_interval(cost.tpot_ratio),
        decode(earlier.decode, cost.tpot_ratio, cost.aa_tpot_ratio),
        q.share(held_share(cost)),
        q.share(peak_share(cost)),
        memory(earlier.memory, cost) if earlier.memory else q.DASH,
    ]


def details(found: Sequence[Repeated]) -> Iterator[tuple[str, Table]]:
    columns = [
        ("Setting", "l"),
        ("New tokens", "r"),
        ("What the earlier figure measured", "l"),
        ("Otherwise here", "l"),
    ]
    lines = [[s.title, q.count(s.n_new_tokens), s.measured, s.here or q.DASH] for s in (one.setting for one in found)]
    yield "What the earlier figures really measured, and what is otherwise here", Table(columns, lines)
    elsewhere = [[one.title, one.said, one.belongs_to] for one in study.read().elsewhere]
    yield (
        "What else the study had, which is no technique of the cache",
        Table([("Of the study", "l"), ("Earlier", "l"), ("Belongs to", "l")], elsewhere),
    )


def sentences(found: Sequence[Repeated]) -> list[str]:
    timed = [one for one in found if one.cost]
    lines = [_counted(found), *(_limit(members) for members in _by_length(timed))]
    model = timed[0].row.config("model") if timed and timed[0].row else {}
    if model.get("source") == "random":
        lines.append("The weights are random: right for time and memory, and for nothing else.")
    lines.append(
        "A prompt of one token leaves nothing to compress in it, so techniques that decide once, after the prompt, are "
        "not in the study. Learned positions end at 1,024: of 1,024 new tokens the last cannot be fed. "
        "Slots are allocated in advance, so bytes held are level where the study's caches grew with every token."
    )
    return lines


def _counted(found: Sequence[Repeated]) -> str:
    judged = group(found, _judged)
    said = [f"{verdict}: {q.words(f'`{one.name}`' for one in members)}" for verdict, members in judged.items()]
    return f"The earlier times of a decode step, against what is found now: {'; '.join(said)}."


def _judged(one: Repeated) -> str:
    cost = one.cost
    if cost is None:
        return STATUS[one.row.record.status] if one.row else NOT_MEASURED
    return decode(one.setting.earlier.decode, cost.tpot_ratio, cost.aa_tpot_ratio)


def _by_length(found: Sequence[Repeated]) -> list[list[Repeated]]:
    return list(group(found, lambda one: one.setting.n_new_tokens).values())


def best_ratio(row: Row) -> tuple[float, float, float]:
    """Of the bytes that a step of the full cache reads, the share that is keys and values: mean over steps, last step;
    and the ratio to its time that a cache of no bytes would have.
    """
    cell, predicted = row.cell, row.record.predicted
    assert predicted, "a timed record has its prediction"
    per_token = cell.batch * predicted.kv_bytes_per_token
    half_way = cell.seq_len + cell.n_new_tokens // 2
    weights = predicted.decode_bytes_per_step - per_token * min(half_way, cell.kv_budget or half_way)
    mean, last = per_token * half_way, per_token * (cell.seq_len + cell.n_new_tokens)
    return mean / (weights + mean), last / (weights + last), weights / (weights + mean)


def _limit(timed: Sequence[Repeated]) -> str:
    row = timed[0].row
    assert row
    mean, last, best = best_ratio(row)
    beyond = [one.name for one in timed if one.cost and one.cost.tpot_ratio.high < best]
    cell = row.cell
    said = (
        f"Over {q.count(cell.n_new_tokens)} new tokens, keys and values are {q.share(mean)} of the bytes a step of "
        f"the full cache reads, {q.share(last)} in the last one: at batch {q.count(cell.batch)}, bytes alone let no "
        f"cache bring a step below {q.ratio(best)} of the full cache's on average (a gain of {q.ratio(1 / best)})."
    )
    if not beyond:
        return said
    names = q.words(f"`{name}`" for name in beyond)
    return f"{said} Below that, and so not by the bytes of the cache alone: {names}."


def rankings(found: Sequence[Repeated]) -> Iterator[tuple[str, Table]]:
    """As the study did, by how much the steps of one run vary."""
    columns = [("Rank", "r"), ("Technique", "l"), ("Standard deviation over mean", "r"), ("p99 over p50", "r")]
    for members in _by_length([one for one in found if one.cost]):
        lines = _ranked(
            [*((f"`{one.name}`", one.cost.technique.step_s) for one in members if one.cost), _full(members)]
        )
        title = f"Ranking by stability, {q.count(members[0].setting.n_new_tokens)} new tokens"
        yield title, Table([*columns, ("Against the full cache", "l")], lines)


def _full(members: Sequence[Repeated]) -> tuple[str, list[float]]:
    cost = members[0].cost
    assert cost
    return "the full cache", cost.full.step_s


def _ranked(arms: Sequence[tuple[str, Sequence[float]]]) -> list[list[str]]:
    """The last arm is the reference."""
    varying = [(name, value, spread(steps, 99)) for name, steps in arms if (value := variation(steps))]
    numbered = zip(ranks([value for _, value, _ in varying]), varying, strict=True)
    reference = varying[-1]
    return [
        [
            str(rank),
            name,
            _percent(value),
            _times(tail),
            q.DASH if name == reference[0] else _steadier(value, reference[1]),
        ]
        for rank, (name, value, tail) in sorted(numbered, key=lambda item: (item[0], item[1][1].estimate))
    ]


def _steadier(value: Interval, full: Interval) -> str:
    if value.low <= full.high and full.low <= value.high:
        return verdicts.NO_DIFFERENCE
    return verdicts.STEADIER if value.estimate < full.estimate else verdicts.UNSTEADIER


def _percent(value: Interval) -> str:
    return f"{q.share(value.estimate)} [{100 * value.low:.1f},{q.GLUE}{100 * value.high:.1f}]"


def _times(value: Interval | None) -> str:
    return (
        q.DASH
        if value is None
        else f"{q.decimal(value.estimate)} [{q.decimal(value.low)},{q.GLUE}{q.decimal(value.high)}]"
    )
