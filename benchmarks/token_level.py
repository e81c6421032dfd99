"""Every technique and Transformers' own caches against DynamicCache, in one process, paired and interleaved.

    python -m benchmarks.token_level [--grid] [--only NAME[,NAME…]] [HYDRA_OVERRIDE …]

Without --grid what has a bar: one prompt of 4,096 tokens, and steps after many tokens; on a GPU the points that are
there for one. What is measured stands in token_level.yaml. Each arm becomes a record of level `benchmark`; a record
that still holds is kept, and what is missing is timed together with a reference of its own. In records of workload
`against_dynamic_cache`, `cost.full` is DynamicCache with stock attention and `cost.full_again` is DynamicCache once
more; in those of workload `seen` they are the same technique after the fewest tokens. Where an arm did not read a
prompt for each row, the time to its first token is NaN.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.arms import Row, arm_of, decides_every_step, names, rows
from pipeline import bars, hardware, record, timing
from pipeline.bars import LEVEL, SEEN, Plan, Point
from pipeline.levels.paired import Bench
from pipeline.memory.measured import available_bytes
from pipeline.record import Cost, Record
from pipeline.refusals import refusals

COMMON = ["workload=cost", "tracking=disabled", "profile.n_decode_trials=8"]
# One prefill each: it takes most of the time here, and what is asked of it is coarse.
POINTS = [*COMMON, "workload.n_new_tokens=33", "profile.n_prefill_trials=1", "profile.max_cell_s=1800"]
STREAMS = [*COMMON, "model=bench_small", "workload.seq_len=[4096,8192,16384,32768]", "workload.n_new_tokens=17",
           "profile.n_prefill_trials=1", "strategy.kv_budget=512"]  # fmt: skip
ROOM = 0.7  # of the free memory that caches may fill; the rest is for what a step takes on top


def run(overrides: Sequence[str] = (), *, whole_grid: bool = False, only: Sequence[str] = ()) -> list[Record]:
    """One record for each arm and point, those that were there among them.

    Raises ValueError for options that mean nothing and for a corrupt record.
    """
    plan = bars.load()
    on_gpu = hardware.has_cuda()
    found = names(plan, only, judged=not (whole_grid or only or on_gpu))
    points = plan.cuda if on_gpu else [*plan.default, *(plan.grid if whole_grid else [])]
    asked = _by_point(row for point in points for row in rows(_of(point, found), [*_at(plan, point), *overrides]))
    streaming = [name for name in found if name not in plan.skipped and decides_every_step(name) and not on_gpu]
    streams = list(rows(streaming, [*STREAMS, *overrides], SEEN))
    locks = asked[0][0].experiment.results_path / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{LEVEL}.lock"):
        written = {row.path: item for members in asked for row, item in _point(members, plan)}
        written |= {row.path: item for row, item in _streams(streams)}
        _remove_outdated(locks.parent)
    return list(written.values())


def _remove_outdated(results_dir: Path) -> None:
    """What older versions left on this machine; nobody can read it any more."""
    for path in (results_dir / LEVEL).glob(f"*/{hardware.hardware_id()}/*.json"):
        try:
            record.read(path)
        except record.OutdatedRecord:
            path.unlink()


def _by_point(asked: Iterable[Row]) -> list[list[Row]]:
    """Rows that are timed together; a list of lengths on the command line makes several points of one."""
    points: dict[tuple[str, int, int], dict[Path, Row]] = {}
    for row in asked:
        points.setdefault((row.cell.model, row.cell.seq_len, row.cell.batch), {})[row.path] = row
    return [list(members.values()) for members in points.values()]


def _of(point: Point, found: Sequence[str]) -> list[str]:
    return [name for name in found if not point.arms or name in point.arms]


def _at(plan: Plan, point: Point) -> list[str]:
    where = [f"model={point.model}", f"workload.seq_len={point.seq_len}", f"workload.batch={point.batch}",
             f"dtype={point.dtype}"]  # fmt: skip
    return [*POINTS, f"strategy@baseline={plan.reference}", *where]


def _point(members: Sequence[Row], plan: Plan) -> Iterator[tuple[Row, Record]]:
    """All arms of one point. Those whose steps the host takes part in are timed by themselves: no graph holds such a
    step, and where one arm has none, none has.
    """
    ready: dict[bool, list[tuple[Row, Bench]]] = {True: [], False: []}
    with timing.pinned_threads(members[0].experiment.n_threads):
        for row in members:
            if why := plan.skipped.get(row.cell.strategy):
                yield row, row.skipped(why, "python -m pipeline.run")
            elif kept := row.kept():
                yield row, kept
            else:
                try:
                    bench, stays = row.tried()
                    ready[stays].append((row, bench))
                except Exception as error:
                    yield row, row.failed(error)
        for alike in ready.values():
            for group in _groups(alike):
                yield from _timed(group)


def _groups(ready: Sequence[tuple[Row, Bench]]) -> Iterator[list[tuple[Row, Bench]]]:
    """Arms that fit into memory together, beside two references and what one more cache takes while it is made."""
    group: list[tuple[Row, Bench]] = []
    for row, bench in ready:
        full, room = bench.predicted_full.kv_bytes_held, ROOM * available_bytes(row.cell.device)
        if group and sum(other.predicted.kv_bytes_held for _, other in [*group, (row, bench)]) + 4 * full > room:
            yield group
            group = []
        group.append((row, bench))
    if group:
        yield group


def _timed(group: Sequence[tuple[Row, Bench]]) -> Iterator[tuple[Row, Record]]:
    """Arms in turns with DynamicCache and, once more, DynamicCache. Where one fails, each is tried by itself."""
    gc.collect()  # caches of the group before
    started = time.perf_counter()
    first, bench = group[0]
    _say(first, len(group))
    if (needed := 4 * bench.predicted_full.kv_bytes_held) > available_bytes(first.cell.device):
        for row, _ in group:
            yield row, row.skipped(f"needs at least {needed:,} bytes for caches", "a shorter prompt, a smaller batch")
        return
    arms = {row.cell.strategy: arm_of(row, own.arms.technique) for row, own in group}
    stock = arm_of(first, bench.arms.full)
    try:
        samples = bench.timed(arms | {"dynamic": stock, "dynamic_again": stock})
    except Exception as error:
        if len(group) == 1:
            yield first, first.failed(error)
        else:
            yield from (done for member in group for done in _timed([member]))
        return
    wall_s = time.perf_counter() - started
    for row, own in group:
        three = {"technique": row.cell.strategy, "full": "dynamic", "full_again": "dynamic_again"}
        yield row, _record(row, own, {role: samples[name] for role, name in three.items()}, wall_s)


def _streams(members: Sequence[Row]) -> Iterator[tuple[Row, Record]]:
    """Each technique against itself: after few tokens, after many, and after few once more."""
    by_strategy: dict[str, list[Row]] = {}
    for row in members:
        by_strategy.setdefault(row.cell.strategy, []).append(row)
    for own in by_strategy.values():
        kept = [(row, item) for row in own if (item := row.kept())]
        with timing.pinned_threads(own[0].experiment.n_threads):
            yield from kept if len(kept) == len(own) else _stream(own)


def _stream(members: Sequence[Row]) -> Iterator[tuple[Row, Record]]:
    started = time.perf_counter()
    first, longest = members[0], members[-1]
    _say(longest, len(members))
    try:
        benches = [row.tried()[0] for row in members]
        arms = {
            str(row.cell.seq_len): arm_of(row, own.arms.technique) for row, own in zip(members, benches, strict=True)
        }
        samples = benches[-1].timed(arms | {"again": arm_of(first, benches[0].arms.technique)})
    except Exception as error:
        yield from ((row, row.failed(error)) for row in members)
        return
    wall_s = time.perf_counter() - started
    few = str(first.cell.seq_len)
    for row, own in zip(members, benches, strict=True):
        technique = "again" if row is first else str(row.cell.seq_len)  # against itself it would be 1 by definition
        three = {"technique": samples[technique], "full": samples[few], "full_again": samples["again"]}
        yield row, _record(row, own, three, wall_s)


def _record(row: Row, bench: Bench, samples: dict[str, timing.Samples], wall_s: float) -> Record:
    if not row.reads_prompts:
        for arm in samples.values():
            arm.ttft_s = [math.nan]
    return row.measured(bench.predicted, bench.summed(**samples), wall_s)


def _say(row: Row, n_arms: int) -> None:
    cell = row.cell
    where = f"{cell.model}, {cell.seq_len:,} tokens, batch {cell.batch}"
    print(
        f"{where}: {n_arms} arms{f' of {cell.strategy}' if cell.workload == SEEN else ''}", file=sys.stderr, flush=True
    )


def show(records: Sequence[Record]) -> None:
    table = Table("arm", "model", "tokens", "batch", "step p50", "ratio", "95 % interval", "A/A", box=box.SIMPLE)
    for item in records:
        if item.cost is not None:
            table.add_row(item.cell.strategy, item.cell.model, f"{item.cell.seq_len:,}", str(item.cell.batch),
                          *_measured(item.cost))  # fmt: skip
    console = Console()
    console.print(table)
    for line in dict.fromkeys(
        f"{item.cell.strategy} {item.status}: {item.reason}" for item in records if not item.cost
    ):
        console.print(line)


def _measured(cost: Cost) -> list[str]:
    ratio, noise = cost.tpot_ratio, cost.aa_tpot_ratio
    step = f"{1e3 * cost.technique.tpot_s_p50:.2f} ms"
    return [step, f"{ratio.estimate:.2f}", f"{ratio.low:.2f} … {ratio.high:.2f}", f"{noise.low:.2f} … {noise.high:.2f}"]


def main(arguments: Sequence[str]) -> None:
    assert __doc__
    parser = argparse.ArgumentParser("benchmarks.token_level", description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", action="store_true", help="all techniques, more lengths, grouped heads")
    parser.add_argument("--only", default="", help="these arms, separated by commas")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all arms, such as workload.seq_len=1024")
    given = parser.parse_args(arguments)
    with refusals():
        show(run(given.overrides, whole_grid=given.grid, only=list(filter(None, given.only.split(",")))))


if __name__ == "__main__":
    main(sys.argv[1:])
