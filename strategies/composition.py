"""Which parts go together. What a part cannot do it says itself; here the two that meet are named."""

from __future__ import annotations

from strategies.system.paged import Paged
from strategies.system.pages import pages_of
from strategies.token.contiguous import Contiguous
from strategies.token.drop import Drop
from strategies.token.never import Never
from strategies.token.offload import Offload
from strategies.token.parts import (
    Allocation,
    Calibrated,
    Encoding,
    HeadAllocation,
    OnEvict,
    Placement,
    Schedule,
    Scorer,
    Sharing,
)


def require_composable(
    scorer: Scorer,
    allocation: Allocation,
    schedule: Schedule,
    on_evict: OnEvict,
    encoding: Encoding,
    sharing: Sharing,
    placement: Placement,
) -> None:
    """Raises ValueError, one line that names both axes and what would be valid."""
    storage = encoding(Contiguous())  # empty: it is only asked what it can do
    when = _name("schedule", schedule)
    if getattr(scorer, "prompt_only", False) and not schedule.decides_once:
        raise ValueError(f"{_name('scorer', scorer)} judges a whole prompt, but {when} evicts later too; "
                         "valid: schedule=at_prefill, or another scorer")  # fmt: skip
    if getattr(storage, "by_position", False) and not isinstance(schedule, Never):
        raise ValueError(f"{_name('encoding', storage)}(pre_rope=True) turns keys by the slots they lie in, but {when} "
                         "evicts; valid: schedule=never, or pre_rope=False")  # fmt: skip
    if not storage.overwrites and not schedule.decides_once:
        raise ValueError(f"{_name('encoding', storage)} codes neighbours together, but {when} replaces single tokens; "
                         "valid: schedule=at_prefill or never, or another encoding")  # fmt: skip
    if isinstance(allocation, HeadAllocation) and not schedule.decides_once:
        raise ValueError(f"{_name('allocation', allocation)} is shared out once, but {when} replaces single tokens; "
                         "valid: schedule=at_prefill or never, or another allocation")  # fmt: skip
    if isinstance(allocation, HeadAllocation) and not isinstance(on_evict, Drop):
        raise ValueError(f"{_name('allocation', allocation)} leaves heads of different lengths, but "
                         f"{_name('on_evict', on_evict)} needs as many neighbours for each; "
                         "valid: on_evict=drop, or another allocation")  # fmt: skip
    if isinstance(allocation, HeadAllocation) and isinstance(placement, Offload):
        raise ValueError(f"{_name('allocation', allocation)} holds every head on its own, but "
                         f"{_name('placement', placement)} moves whole layers; "
                         "valid: placement=contiguous, or another allocation")  # fmt: skip
    if isinstance(allocation, HeadAllocation) and isinstance(encoding, Calibrated):
        raise ValueError(f"{_name('allocation', allocation)} holds every head on its own, but "
                         f"{_name('encoding', storage)} is calibrated for all heads of a layer; "
                         "valid: another allocation, or another encoding")  # fmt: skip
    if isinstance(encoding, Calibrated) and isinstance(placement, Offload):
        raise ValueError(f"{_name('encoding', storage)} projects on the model's device, but "
                         f"{_name('placement', placement)} encodes on the host; "
                         "valid: placement=contiguous, or another encoding")  # fmt: skip
    if isinstance(placement, Paged) and pages_of(storage) is None:
        raise ValueError(f"{_name('placement', placement)} cuts tokens into blocks, but {_name('encoding', storage)} "
                         "codes neighbours or dimensions together; "
                         "valid: placement=contiguous, or encoding=dense, int8 or int4")  # fmt: skip
    if isinstance(encoding, Calibrated) and not sharing.may_evict:
        raise ValueError(f"{_name('sharing', sharing)} mixes two layers, but {_name('encoding', storage)} is "
                         "calibrated for one; valid: sharing=none, or another encoding")  # fmt: skip
    if scorer.in_cache_positions and not storage.overwrites and not isinstance(schedule, Never):
        raise ValueError(f"{_name('scorer', scorer)} moves the keys of its sinks, but {_name('encoding', storage)} "
                         "codes neighbours together; valid: schedule=never, or another encoding")  # fmt: skip
    if not sharing.may_evict and not isinstance(schedule, Never):
        raise ValueError(f"{_name('sharing', sharing)} needs the same tokens in its layers, but {when} evicts; "
                         "valid: schedule=never, or sharing=none")  # fmt: skip


def _name(axis: str, part: object) -> str:
    return f"{axis}={type(part).__name__}"
