"""Candidates of the records with the bytes that their caches take on the model that is asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hydra.errors import InstantiationException

from pipeline.advise.candidates import Basis, Candidate, bases, candidates, comparable
from pipeline.advise.selection import Needs, Selection, select
from pipeline.advise.wish import Wish
from pipeline.config import Strategy
from pipeline.findings.evidence import Row
from pipeline.memory.calculator import Calculated, calculate

# What techniques and their parts raise about a model that they cannot hold.
NOT_HELD = (
    InstantiationException, ImportError, NotImplementedError, RuntimeError, TypeError, AttributeError, LookupError,
    ValueError,
)  # fmt: skip
Follow = Callable[[Sequence[Candidate]], Iterable[Candidate]]


@dataclass(frozen=True)
class Counted:
    """Bytes of the whole batch, counted on shapes, and the most sequences that fit beside the weights."""

    held: int
    largest_batch: int | None  # None: any


@dataclass(frozen=True)
class Advised:
    basis: Basis
    judged: list[str]  # models whose quality was measured
    needs: Needs
    weight_bytes: int
    room_bytes: int  # that the weights leave
    full: Counted
    selection: Selection
    counted: dict[str, Counted]  # by candidate
    elsewhere: list[str]  # held on the host, whose memory is not asked about
    refused: dict[str, str]  # by candidate that this model cannot have: why


def judged_models(rows: Sequence[Row]) -> list[str]:
    own = comparable(rows)
    return sorted({row.cell.model for row in own if row.record.quality and row.in_trained_length})


def basis(wish: Wish, rows: Sequence[Row]) -> Basis:
    """Raises ValueError for no records of any technique's cost, and for a model whose quality was not measured."""
    own, label, judged, found = comparable(rows), wish.model.label, judged_models(rows), bases(rows)
    if not found:
        raise ValueError(f"results_dir={wish.results_dir}: no technique was timed; measure some with `make repro`")
    if wish.quality_from is not None and wish.quality_from not in judged:
        valid = ", ".join(judged) or "none was measured"
        raise ValueError(f"quality_from={wish.quality_from}: its quality was not measured; valid: {valid}")
    taken = wish.quality_from or (label if label in judged else None)
    if wish.objective == "quality" and taken is None:
        raise ValueError(f"objective=quality: unknown for {label}, on which it was not measured; valid: memory, speed, "
                         f"or with quality_from={' or '.join(judged) or 'a model that was measured'}")  # fmt: skip
    timed = [row for row in own if row.record.cost and row.cell.model == label]
    if timed:
        return Basis(timed[0].hardware_id, label, taken)
    most = max(found, key=lambda one: len({row.strategy for row in own if row.hardware_id == one.machine}))
    return replace(most, judged_on=taken)


def advise(wish: Wish, rows: Sequence[Row], follow: Follow) -> Advised:
    """Counts only those that nothing else rules out. Raises ValueError where not even the weights fit."""
    source = basis(wish, rows)
    full = calculate(wish.question(wish.baseline))
    room = wish.memory_bytes - full.weight_bytes
    if room <= 0:
        raise ValueError(f"memory_gb={wish.memory_gb:g}: the weights of {wish.model.label} alone take "
                         f"{full.weight_bytes / 1e9:.1f} in {wish.dtype}; valid: more than that")  # fmt: skip
    baseline = _counted(wish, full, room)
    min_recall = wish.min_quality if source.judged_on else None
    needs = Needs(min_recall=min_recall, max_share=room / baseline.held, objective=wish.objective)
    found = candidates(rows, source, wish.seq_len, wish.batch)
    elsewhere = [one.name for one in found if not one.is_control and _offloads(one)]
    here = [replace(one, share=None) for one in found if not _offloads(one)]
    possible = select(here, needs.model_copy(update={"max_share": None}))
    counted: dict[str, Counted] = {}
    refused: dict[str, str] = {}
    for one in follow(possible.fitting):
        try:
            question = wish.question(Strategy.model_validate(one.row.config("strategy")))
            counted[one.name] = _counted(wish, calculate(question), room)
        except NOT_HELD as error:
            refused[one.name] = " ".join(str(error).split())
    sized = [replace(one, share=counted[one.name].held / baseline.held) for one in here if one.name in counted]
    selection = select(sized, needs)
    selection = replace(selection, missing=[*selection.missing, *possible.missing])
    return Advised(
        source, judged_models(rows), needs, full.weight_bytes, room, baseline, selection, counted, elsewhere, refused
    )


def _offloads(one: Candidate) -> bool:
    placement = one.row.config("strategy").get("placement") or {}
    return str(placement.get("_target_")).endswith(".Offload")


def _counted(wish: Wish, found: Calculated, room: int) -> Counted:
    (answer,) = found.answers
    return Counted(answer.of_batch(wish.batch).held, answer.largest_batch(room))
