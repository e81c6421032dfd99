"""Engines beside Transformers one by one and in one batch: what each delivers, how soon, and in how many bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import BASELINE, Row, Setting, group
from pipeline.record import Agreement, Interval, Serving, Throughput
from pipeline.report.tables import STATUS, Table, link

ENGINE = "engine"  # the level
ONE_BY_ONE, BATCH, VLLM, PREFIX, OURS = "hf_generate", "hf_batch", "vllm", "vllm_prefix", "ours"
ORDER = (ONE_BY_ONE, BATCH, "hf_continuous", OURS, VLLM)
GARBAGE = "not the model: garbage"
KV_DTYPE = "kv_cache_dtype"
EQUAL_LENGTHS, MIXED, SHARED, DTYPES = "throughput", "mixed_lengths", "shared_prefix", "kv_dtypes"
HEADINGS = {EQUAL_LENGTHS: "Prompts of one length", MIXED: "Lengths that differ", SHARED: "Prompts that start alike"}
NO_NOISE = Interval(estimate=1.0, low=1.0, high=1.0, n=0)  # no engine is timed against itself as an arm of its own


@dataclass(frozen=True)
class Served:
    """One engine at one point, with its record's own row."""

    row: Row
    throughput: Throughput

    @property
    def name(self) -> str:
        return self.row.cell.engine

    @property
    def title(self) -> str:
        """As its file says; our loop with the cache that it had, and one by one with what it served of the point."""
        title = str(self.row.config(ENGINE).get("title", self.name))
        if self.name == OURS:
            return f"{title}, `{self.row.strategy}`"
        return f"{title}, {self.n_served} of {self.n_asked} prompts" if self.is_sample else title

    @property
    def n_asked(self) -> int:
        return len(self.throughput.n_prompt_tokens)

    @property
    def n_served(self) -> int:
        found = self.serving.n_requests if self.serving else None
        return self.n_asked if found is None else found

    @property
    def is_sample(self) -> bool:
        """Whether it served some of the requests only, so that none waited in the queue that all of them make."""
        return self.n_served < self.n_asked

    @property
    def serving(self) -> Serving | None:
        return self.throughput.engine

    def took_s(self, percent: float) -> float:
        """From a request's own arrival to its last token: what so many in a hundred stay below, over all trials."""
        if (own := self.serving) is None:
            return math.nan
        gaps = iter(own.tpot_s)  # a request with one token has none
        asked = zip(own.ttft_s, cycle(self.throughput.n_new_tokens[: self.n_served]), strict=False)
        took = [first + (n_new - 1) * next(gaps, math.nan) if n_new > 1 else first for first, n_new in asked]
        return float(np.percentile(took or [math.nan], percent))


def arrives_over_s(found: Throughput) -> float:
    """Until the last request is there. Its rate was chosen, and no engine that keeps up with it delivers more in a
    second, so that tokens per second and their ratios would say what was chosen.
    """
    return max(found.arrival_s, default=0.0)


@dataclass(frozen=True)
class Point:
    """What was asked of several engines at once."""

    model: str
    workload: str
    n_prompts: int
    seq_len: int
    n_new_tokens: int
    engines: list[Served]  # the baselines first

    @property
    def name(self) -> str:
        about = "about " if self.workload == MIXED else ""
        return (
            f"{q.plural(self.n_prompts, 'prompt')} of {about}{q.plural(self.seq_len, 'token')}, "
            f"{about}{q.count(self.n_new_tokens)} new{self._arriving}"
        )

    @property
    def arrives_over_s(self) -> float:
        return arrives_over_s(self.engines[0].throughput)

    @property
    def _arriving(self) -> str:
        return f", arriving over {q.seconds(self.arrives_over_s)}" if self.arrives_over_s else ""

    def of(self, engine: str, strategy: str = BASELINE) -> Served | None:
        return next((one for one in self.engines if (one.name, one.row.strategy) == (engine, strategy)), None)

    def __iter__(self) -> Iterator[Served]:
        return iter(self.engines)


def setting_of(row: Row) -> Setting:
    """What must be shared to stand in one section."""
    return replace(row.setting, model="", workload="", engine="", baseline="", n_new_tokens=0)


def title(setting: Setting) -> str:
    return f"machine `{setting.hardware_id}` ({setting.dtype}, {setting.device}, seed {setting.seed})"


def points(rows: Sequence[Row]) -> list[Point]:
    """Everything that was measured, few prompts first."""
    served = [Served(row, row.record.throughput) for row in rows if row.record.throughput is not None]
    found = [
        Point(*asked, sorted(members, key=_place))
        for asked, members in group(served, lambda one: _asked(one.row)).items()
    ]
    return sorted(found, key=lambda point: (point.workload, point.n_prompts, point.seq_len, point.n_new_tokens))


def _asked(row: Row) -> tuple[str, str, int, int, int]:
    cell = row.cell
    return cell.model, cell.workload, cell.batch, cell.seq_len, cell.n_new_tokens


def _place(one: Served) -> tuple[Any, ...]:
    known = ORDER.index(one.name) if one.name in ORDER else len(ORDER)
    return known, one.name, one.row.strategy != BASELINE, one.row.strategy


def tables(rows: Sequence[Row], reports_dir: Path) -> Iterator[tuple[str, Table]]:
    found = points(rows)
    for workload, heading in HEADINGS.items():
        members = [point for point in found if point.workload == workload]
        if at_once := [point for point in members if not point.arrives_over_s]:
            yield f"{heading}: tokens per second and waiting", _speed(at_once, reports_dir)
        if arriving := [point for point in members if point.arrives_over_s]:
            yield f"{heading}, arriving at a rate that we chose: how long each takes", _waits(arriving, reports_dir)
    if pooled := [point for point in found if point.workload in HEADINGS]:
        yield "Bytes of keys and values, blocks and start", _memory(pooled)
    if scored := [point for point in found if point.workload == DTYPES]:
        yield "What vLLM holds keys and values in", _dtypes(scored, reports_dir)
    if (missing := _missing(rows)).rows:
        yield "Not measured, and why", missing


def _speed(found: Sequence[Point], reports_dir: Path) -> Table:
    columns = [("Asked", "l"), ("Engine", "l"), ("Tokens per s", "r"), ("Over one by one", "r"), ("is", "l")]
    columns += [
        ("Over one batch", "r"),
        ("is", "l"),
        ("First token", "r"),
        ("of nine in ten", "r"),
        ("Next token", "r"),
    ]
    return Table(columns, [[point.name, *_speed_cells(one, reports_dir)] for point in found for one in point])


def _speed_cells(one: Served, reports_dir: Path) -> list[str]:
    linked = link(one.row, one.title, reports_dir)
    if (own := one.serving) is None:
        return [linked, *[q.DASH] * 2, GARBAGE, *[q.DASH] * 5]
    return [
        linked,
        q.three(own.tokens_per_s),
        *_beside(one, one.throughput.speedup_one_by_one, ONE_BY_ONE),
        *_beside(one, one.throughput.speedup_batch, BATCH),
        *_first_token(one, own),
        q.seconds(own.tpot_s_p50),
    ]


def _first_token(one: Served, own: Serving) -> list[str]:
    """Of half of the requests and of nine in ten."""
    return [q.DASH] * 2 if one.is_sample else [q.seconds(own.ttft_s_p50), q.seconds(own.ttft_s_p90)]


def _beside(one: Served, speedup: Interval | None, baseline: str) -> list[str]:
    if one.name == baseline or speedup is None:
        return [q.DASH, "reference"]
    return [q.ratio_interval(speedup), verdict(speedup)]


def verdict(speedup: Interval) -> str:
    """In words, by its own interval, in which the baseline's trials differ as well; a single trial bounds nothing."""
    return verdicts.speed(_inverse(speedup), NO_NOISE)


def _inverse(speedup: Interval) -> Interval:
    """Of rates, as a ratio of times."""
    low, high = (1 / end if end else float("inf") for end in (speedup.high, speedup.low))
    return Interval(estimate=1 / speedup.estimate, low=low, high=high, n=speedup.n)


def _waits(found: Sequence[Point], reports_dir: Path) -> Table:
    columns = [("Asked", "l"), ("Engine", "l"), ("First token", "r"), ("of nine in ten", "r"), ("Next token", "r")]
    columns += [("Whole request", "r"), ("of nine in ten", "r")]
    return Table(columns, [[point.name, *_wait_cells(one, reports_dir)] for point in found for one in point])


def _wait_cells(one: Served, reports_dir: Path) -> list[str]:
    linked = link(one.row, one.title, reports_dir)
    if (own := one.serving) is None:
        return [f"{linked}, {GARBAGE}", *[q.DASH] * 5]
    took = [q.seconds(one.took_s(percent)) for percent in (50, 90)]
    return [linked, *_first_token(one, own), q.seconds(own.tpot_s_p50), *took]


def _memory(found: Sequence[Point]) -> Table:
    columns = [("Asked", "l"), ("Engine", "l"), ("Allocated", "r"), ("Used at most", "r"), ("Over one batch's", "r")]
    columns += [("Blocks used", "r"), ("of", "r"), ("Tokens each", "r"), ("Preempted", "r"), ("Start", "r")]
    lines = [
        [point.name, one.title, *_memory_cells(one, one.serving)] for point in found for one in point if one.serving
    ]
    return Table(columns, lines)


def _memory_cells(one: Served, own: Serving) -> list[str]:
    blocks = [q.DASH] * 4
    if own.n_blocks is not None:
        blocks = [
            q.count(own.n_blocks_used or 0),
            q.count(own.n_blocks),
            q.count(own.block_size or 0),
            q.count(own.n_preemptions),
        ]
    start = q.seconds(own.start_up_s) if own.start_up_s else q.DASH
    return [q.data(own.kv_bytes_allocated), q.data(own.kv_bytes_used), q.share(used_share(one)), *blocks, start]


def used_share(one: Served) -> float:
    """Bytes in use at most, over those of Transformers' batch; NaN where there are none to compare."""
    used, batch = one.throughput.engine, one.throughput.batch.kv_bytes_used
    return used.kv_bytes_used / batch if used and batch else float("nan")


def _dtypes(found: Sequence[Point], reports_dir: Path) -> Table:
    columns = [("Asked", "l"), ("Engine", "l"), ("Tokens scored", "r"), ("Correlation", "r"), ("KL, nats", "r")]
    columns += [("Greedy token same", "r"), ("Tokens per s", "r"), ("Over one batch", "r"), ("is", "l")]
    return Table(columns, [[point.name, *_dtype_cells(one, reports_dir)] for point in found for one in point])


def _dtype_cells(one: Served, reports_dir: Path) -> list[str]:
    linked, scored = link(one.row, one.title, reports_dir), _scores(one.throughput.agreement)
    if (own := one.serving) is None:
        return [linked, *scored, q.DASH, q.DASH, GARBAGE]
    return [linked, *scored, q.three(own.tokens_per_s), *_beside(one, one.throughput.speedup_batch, BATCH)]


def _scores(agreement: Agreement) -> list[str]:
    correlation, kl = agreement.correlation, agreement.kl
    return [
        q.count(agreement.n_steps),
        q.DASH if correlation is None else q.decimal(correlation, 3),
        q.DASH if kl is None else q.decimal(kl, 3),
        q.share(agreement.tokens_equal),
    ]


def _missing(rows: Sequence[Row]) -> Table:
    columns = [("Engine", "l"), ("Where", "l"), ("Status", "l"), ("Why", "l"), ("What would help", "l")]
    failed = [row for row in rows if row.record.status != "ok"]
    lines = []
    for members in group(failed, lambda row: (row.cell.engine, row.strategy, row.record.reason)).values():
        record = members[0].record
        where = q.words(dict.fromkeys(f"{row.cell.workload}, {q.plural(row.cell.batch, 'prompt')}" for row in members))
        why, remedy = q.free_text(record.reason), q.free_text(record.remedy)
        lines.append([f"`{record.cell.engine}`", where, STATUS[record.status], why, remedy])
    return Table(columns, lines)
