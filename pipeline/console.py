"""What a run shows: progress on stderr, the table and the paths on stdout; plain text in a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from pipeline.findings.verdicts import answered
from pipeline.grid import Done, Grid
from pipeline.hardware import n_usable_cores
from pipeline.record import Cost, Interval, Quality, Record, Throughput

IDENTITY = ("technique", "model", "tokens", "batch", "kept")
COST = ("KV held", "of full", "weights", "of plain", "TTFT", "TPOT", "TPOT / full")
QUALITY = ("recall aware", "agnostic", "text nats")
THROUGHPUT = ("tokens/s", "over one by one", "over one batch")
COLUMNS = IDENTITY + COST + QUALITY + THROUGHPUT
NO_LIMIT = 1000  # characters of a line
TOO_WIDE = 10.0  # high over low of an interval that no longer says anything


class Announce(Protocol):
    def __call__(self, done: Done) -> None: ...


@contextmanager
def progress(n_cells: int, title: str) -> Iterator[Announce]:
    """A bar with the time taken and left on a terminal; in a pipe one line for each cell.

    It is drawn once a second: every drawing takes a little time from what is being measured.
    """
    name = TextColumn(escape(title), table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    time = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = _console(stderr=True)
    with Progress(
        *(name, BarColumn(20), MofNCompleteColumn(), *time),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=1,
        disable=not console.is_terminal,
    ) as bar:
        if (load := os.getloadavg()[0]) > n_usable_cores() + 1:
            console.print(f"this machine is busy (load {load:.0f}): times will be noisy, not quality", markup=False)
        task = bar.add_task(title, total=n_cells)
        seen: list[Done] = []

        def announce(done: Done) -> None:
            seen.append(done)
            bar.advance(task)
            cell = done.record.cell
            how = "already measured" if done.reused else f"{done.record.status} after {done.record.wall_s:.1f} s"
            where = f"{cell.technique} on {cell.model}, {cell.seq_len:,} tokens, batch {cell.batch}"
            console.print(f"[{len(seen)}/{n_cells}] {where}: {how}", markup=False, highlight=False)

        yield announce


def show(grid: Grid, root: Path) -> None:
    console = _console()
    rows = [_row(done.record) for done in grid.cells]
    filled = [index for index in range(len(COLUMNS)) if any(row[index] for row in rows)]
    for table in _tables([COLUMNS[i] for i in filled], [[row[i] for i in filled] for row in rows], console):
        console.print(table)
    for done in grid.cells:
        for note in _notes(done.record):
            _print(console, f"note {done.record.cell.slug}: {note}")
        if done.record.status != "ok":
            _print(console, f"{done.record.status} {done.record.cell.slug}: {done.record.reason}")
            _print(console, f"  what would help: {done.record.remedy}")
        _print(console, f"{'kept ' if done.reused else 'wrote'} {_shorten(done.path, root)}")
    for path in grid.removed:
        _print(console, f"removed {_shorten(path, root)}: not in this grid")
    if grid.tracking_path:
        kept_by = "W&B  " if grid.tracking_path.is_dir() else "trackio"  # a folder for each run, or one database
        _print(console, f"{kept_by} {_shorten(grid.tracking_path, root)}")


def _tables(names: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> Iterator[Table]:
    """One table with a line for each cell; where that is too wide, as many cells side by side as there is room for."""
    table = _table(names, rows, n_left=2)
    if _fits(table, console):
        yield table
        return
    while rows:
        n_cells = max((n for n in range(2, len(rows) + 1) if _fits(_turned(names, rows[:n]), console)), default=1)
        yield _turned(names, rows[:n_cells])
        rows = rows[n_cells:]


def _turned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    header, *lines = zip(names, *rows, strict=True)
    return _table(header, lines, n_left=1)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], n_left: int) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(escape(name), justify="left" if index < n_left else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(width=NO_LIMIT)).maximum <= console.width


def _row(record: Record) -> list[str]:
    cell = record.cell
    budget = "all" if cell.kv_budget is None else f"{cell.kv_budget:,}"
    head = [cell.technique, cell.model, f"{cell.seq_len:,}", str(cell.batch), budget]
    return head + _cost(record.cost) + _quality(record.quality) + _throughput(record.throughput)


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * len(COST)
    held, full = cost.technique.kv_bytes_held[-1], cost.full.kv_bytes_held[-1]
    times = [f"{1e3 * cost.technique.ttft_s_p50:.1f} ms", f"{1e3 * cost.technique.tpot_s_p50:.2f} ms"]
    return [f"{held / 2**20:.2f} MiB", f"{held / full:.0%}", *_weights(cost), *times, _interval(cost.tpot_ratio)]


def _weights(cost: Cost) -> list[str]:
    """Shown where the two sides differ in them."""
    own, plain = (sum(arm.weight_bytes.values()) for arm in (cost.technique, cost.full))
    return ["", ""] if own == plain else [f"{own / 2**20:.1f} MiB", f"{own / plain:.0%}"]


def _quality(quality: Quality | None) -> list[str]:
    if quality is None:
        return [""] * len(QUALITY)
    text = ""
    if quality.text:
        difference = round(quality.text.nll - quality.text.nll_full, 2) + 0.0  # no negative zero
        text = f"{quality.text.nll:.2f} ({difference:+.2f})"
    return [_recall(quality, "query_aware"), _recall(quality, "query_agnostic"), text]


def _throughput(throughput: Throughput | None) -> list[str]:
    if throughput is None:
        return [""] * len(THROUGHPUT)
    served, speedups = throughput.engine, (throughput.speedup_one_by_one, throughput.speedup_batch)
    rate = "" if served is None else f"{served.tokens_per_s:.1f}"
    return [rate, *("" if speedup is None else _interval(speedup) for speedup in speedups)]


def _recall(quality: Quality, protocol: str) -> str:
    tasks = [task for task in quality.tasks if task.protocol == protocol]
    if not tasks:
        return ""
    return f"{mean(t.accuracy for t in tasks):.2f} (full {mean(t.accuracy_full for t in tasks):.2f})"


def _interval(interval: Interval) -> str:
    if not _is_narrow(interval):
        return "too noisy"
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _is_narrow(ratio: Interval) -> bool:
    return ratio.high < TOO_WIDE * ratio.low


def _notes(record: Record) -> Iterator[str]:
    """What a reader of the table should know before believing it."""
    if record.cost and not _is_narrow(record.cost.tpot_ratio):
        yield "the trials differ too much to compare; a machine that does nothing else, or more trials, would help"
    tasks = record.quality.tasks if record.quality else []
    if failing := [task.task for task in tasks if not answered(task)]:
        named = ", ".join(dict.fromkeys(failing))
        yield f"the full cache itself mostly fails at {named}: that says nothing about a cache"


def _shorten(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _console(stderr: bool = False) -> Console:
    """In a pipe rich would fold at 80 columns: a table that somebody wants to read or grep needs its full width."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=NO_LIMIT)
