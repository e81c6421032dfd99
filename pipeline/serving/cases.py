"""Cases that can be counted on paper, counted by the allocators themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.serving.contiguous import Spans
from pipeline.serving.plan import Beams, Cases, Fill, Growth, Study
from pipeline.serving.results import Counted, Filled, Forked, Grown, Recounted

NewBlocks = Callable[..., Any]  # (n_blocks, block_size) -> strategies.system.blocks.BlockManager


def counted(cases: Cases, new_blocks: NewBlocks) -> Counted:
    return Counted(
        fills=[_filled(fill, new_blocks) for fill in cases.fills],
        growth=_grown(cases.growth, new_blocks),
        beams=_forked(cases.beams, new_blocks),
        study=_recounted(cases.study, new_blocks),
    )


def _filled(case: Fill, new_blocks: NewBlocks) -> Filled:
    room = len(case.lengths) * case.max_len
    blocks, spans = new_blocks(n_blocks=room, block_size=case.block_size), Spans(room)
    taken = [spans.take(case.max_len) for _ in case.lengths]
    for i, length in enumerate(case.lengths):
        blocks.add(i, length)
    return Filled(
        asked=case,
        n_tokens=sum(blocks.n_tokens(i) for i, _ in enumerate(case.lengths)),
        n_contiguous=sum(span[1] - span[0] for span in taken if span),
        n_blocks=blocks.n_used,
    )


def _grown(case: Growth, new_blocks: NewBlocks) -> Grown:
    blocks = new_blocks(n_blocks=max(case.lengths), block_size=case.block_size)
    blocks.add(0, 0)
    n_blocks = []
    for length in case.lengths:
        blocks.append(0, length - blocks.n_tokens(0))
        n_blocks.append(blocks.n_used)
    return Grown(asked=case, n_blocks=n_blocks)


def _forked(case: Beams, new_blocks: NewBlocks) -> Forked:
    n_prefix, n_own = case.n_prefix_blocks * case.block_size, case.n_own_blocks * case.block_size
    room = case.n * (case.n_prefix_blocks + case.n_own_blocks)
    shared, alone = (new_blocks(n_blocks=room, block_size=case.block_size) for _ in range(2))
    shared.add(0, n_prefix)
    for beam in range(1, case.n):
        shared.fork(0, beam)
    for beam in range(case.n):
        shared.append(beam, n_own)
        alone.add(beam, n_prefix + n_own)
    return Forked(asked=case, n_blocks=shared.n_used, n_blocks_unshared=alone.n_used)


def _recounted(case: Study, new_blocks: NewBlocks) -> Recounted:
    """As many sequences of the mean length as the memory of the contiguous ones has blocks for."""
    n_slots = case.n_contiguous * case.max_len
    blocks = new_blocks(n_blocks=n_slots // case.block_size, block_size=case.block_size)
    n_paged = 0
    while blocks.n_free >= blocks.blocks_of(case.mean_len):
        blocks.add(n_paged, case.mean_len)
        n_paged += 1
    return Recounted(asked=case, n_slots=n_slots, n_paged=n_paged)
