"""The advisor's answer on the terminal: a table, and what of it is measured, computed or extrapolated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.advise.advisor import Advised
from pipeline.advise.candidates import Candidate
from pipeline.advise.wish import Wish
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row
from pipeline.findings.means import PROTOCOL
from pipeline.record import Interval

N_NAMED = 3  # of those that do not qualify
COLUMNS = ("technique", "KV held", "of full", "largest batch", "step / full", "is", "timed at", "recall kept",
           "text nats", "judged at")  # fmt: skip


def followed(found: Sequence[Candidate]) -> Iterable[Candidate]:
    """With a bar on a terminal: counting takes a while at great lengths."""
    console = Console(stderr=True)
    return track(found, "counting bytes", console=console, transient=True, disable=not console.is_terminal)


def show(wish: Wish, advised: Advised) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a line that is folded at 80 columns cannot be searched
        console = Console(highlight=False, markup=False, width=1000)
    for line in _head(wish, advised):
        console.print(line)
    if advised.selection.fitting:
        console.print(_table(advised))
    for line in [*_left_out(advised), *_sources(wish, advised)]:
        console.print(line)


def _head(wish: Wish, advised: Advised) -> Iterator[str]:
    yield (
        f"{wish.model.label}, {wish.dtype}, {q.count(wish.seq_len)} tokens, batch {q.count(wish.batch)}: weights "
        f"{q.data(advised.weight_bytes)} of {q.data(wish.memory_bytes)} ({wish.memory_gb:g} GB) leave "
        f"{q.data(advised.room_bytes)}"
    )
    room = advised.room_bytes / advised.full.held
    fits = "fits: nothing has to be given up" if room >= 1 else f"does not fit; {q.share(room)} of it would"
    yield f"the full cache takes {q.data(advised.full.held)} and {fits}"


def _table(advised: Advised) -> Table:
    """One line for each that fits, best first."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in ("technique", "is") else "right", no_wrap=True)
    for one in advised.selection.fitting:
        table.add_row(*_line(one, advised))
    return table


def _line(one: Candidate, advised: Advised) -> list[str]:
    counted = advised.counted[one.name]
    most = "any" if counted.largest_batch is None else q.count(counted.largest_batch)
    kept = one.recall(advised.needs.protocol)
    return [
        one.name,
        q.data(counted.held),
        q.share(one.share),
        most,
        q.ratio_interval(one.decode) if one.decode else "unknown",
        one.timed.verdict if one.timed and one.decode else q.DASH,
        _where(one.timed.row) if one.timed else q.DASH,
        _kept(kept) if kept else "unknown",
        q.signed(one.text.estimate, 3) if one.text else "unknown",
        _where(one.judged.row) if one.judged else q.DASH,
    ]


def _where(row: Row) -> str:
    return f"{q.count(row.cell.seq_len)} × {q.count(row.cell.batch)}"


def _kept(value: Interval) -> str:
    return f"{q.share(value.estimate)} [{q.share(value.low)}, {q.share(value.high)}]"


def _left_out(advised: Advised) -> Iterator[str]:
    missing = advised.selection.missing
    if not advised.selection.fitting:
        yield "No technique qualifies."
    if missing:
        told = (f"{one.name} {q.words(miss.said for miss in missed)}" for one, missed in missing[:N_NAMED])
        yield f"Ruled out: {q.plural(len(missing), 'technique')}, among them: {'; '.join(told)}."
    if advised.elsewhere:
        yield f"Not ranked: {q.words(advised.elsewhere)}, held on the host, whose memory memory_gb does not say."
    for name, why in advised.refused.items():
        yield f"Not counted: {name} ({why})."


def _sources(wish: Wish, advised: Advised) -> Iterator[str]:
    basis, label = advised.basis, wish.model.label
    where = f"{q.count(wish.seq_len)} tokens and batch {q.count(wish.batch)}"
    yield f"KV held, largest batch: computed from the shapes of {label}, not measured; activations are not counted."
    timed = [one.timed.row for one in advised.selection.fitting if one.timed]
    same = all(row.point == (wish.seq_len, wish.batch) for row in timed)
    on = f"measured on {basis.timed_on}, machine {basis.machine}, at the tokens × batch of its column"
    yield f"Decode step: {on}." if same and basis.timed_on == label else \
        f"Decode step: {on}; for {label} at {where} on another machine it is extrapolated."  # fmt: skip
    yield from _quality_source(wish, advised)


def _quality_source(wish: Wish, advised: Advised) -> Iterator[str]:
    judged_on, label = advised.basis.judged_on, wish.model.label
    if judged_on is None:
        asked = f"min_quality={wish.min_quality:g} is not applied" if wish.min_quality is not None else "not ranked by"
        yield (
            f"Quality: unknown for {label}, on which it was not measured; {asked}. To take over what was measured on "
            f"another model, say which: quality_from={' or '.join(advised.judged) or 'a model that was measured'}."
        )
        return
    protocol = PROTOCOL[advised.needs.protocol]
    taken = f"; for {label} it is extrapolated, because quality_from={judged_on} says so" if judged_on != label else ""
    bound = f" Bound: at least {q.share(wish.min_quality)}." if wish.min_quality is not None else ""
    yield (
        f"Quality: measured on {judged_on} at the tokens of its column, {protocol} (the question comes after "
        f"eviction); recall kept is over the full cache's, mean over tasks{taken}.{bound}"
    )
