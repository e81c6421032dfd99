"""The Triton kernels of `strategies.token.split`; this module imports Triton, which comes with torch for CUDA.

Shapes: B batch, H KV heads, G query heads of one, D head_dim, S channels whose codes are packed together, C = D / S
such groups, W words of each, P parts that the tokens are split into.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _unpacked(words, BITS: tl.constexpr, C: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr):
    """int32 [C · W, tile] → codes [D, tile], as `strategies.token.packing` lays them out."""
    EACH: tl.constexpr = 32 // BITS
    shift = tl.arange(0, EACH) * BITS
    codes = (tl.reshape(words, [C, 1, W, TILE]) >> shift[None, :, None, None]) & ((1 << BITS) - 1)
    return tl.reshape(codes, [C * EACH * W, TILE])


@triton.jit
def _of_channels(shared, S: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr):
    """[C, tile] → [D, tile]."""
    return tl.reshape(tl.broadcast_to(shared[:, None, :], [C, S, TILE]), [C * S, TILE])


@triton.jit
def _attended(score, value, highest, total, mixed, scale, PRECISION: tl.constexpr):
    """One more tile of a softmax that goes along: score [G, tile], value [tile, D], `scale` of each value."""
    now = tl.maximum(highest, tl.max(score, 1))
    weight = tl.exp(score - now[:, None])
    fading = tl.exp(highest - now)
    total = total * fading + tl.sum(weight, 1)
    weight = (weight * scale).to(value.dtype)
    mixed = mixed * fading[:, None] + tl.dot(weight, value, input_precision=PRECISION)
    return now, total, mixed


# What grows is never compiled for a kind of number: that would happen in mid-run.
@triton.jit(do_not_specialize=["n_coded", "n_recent", "n_per_part"])
def part(
    query,  # [B, H, G, D]
    key_codes,  # int32 [B, H, W, slots]
    key_scale,  # by token [B, H, slots]; by channel [B, H, slots / TILE, D]
    key_zero,  # as key_scale where that is by channel
    value_codes,  # int32 [B, H, C, W, slots]
    value_scale,  # by token [B, H, slots]; by group of channels [B, H, C, slots]
    value_zero,  # as value_scale where that is by group
    recent_key,  # [B, H, room, D]
    recent_value,
    highest_out,  # [B, H, P, G]
    total_out,  # [B, H, P, G]
    mixed_out,  # [B, H, P, G, D]
    n_coded,
    n_recent,
    n_per_part,
    scaling,
    key_head,  # numbers between two heads, of each
    key_row,
    key_scale_head,
    value_head,
    value_row,
    value_scale_head,
    value_scale_row,
    recent_head,
    BITS: tl.constexpr,
    S: tl.constexpr,
    BY_TOKEN: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, at = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n_parts = tl.num_programs(1)
    row, d = tl.arange(0, ROWS), tl.arange(0, D)
    is_row = row < G
    q = tl.load(query + head * G * D + row[:, None] * D + d[None, :], mask=is_row[:, None], other=0.0)
    MIDDLE: tl.constexpr = 1 << (BITS - 1)
    WORDS: tl.constexpr = D * BITS // 32
    C: tl.constexpr = D // S
    word, channels = tl.arange(0, WORDS), tl.arange(0, C)
    key_at = key_codes + head * key_head + word[:, None] * key_row
    value_at = value_codes + head * value_head + word[:, None] * value_row

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    start = at * n_per_part
    for first in range(start, tl.minimum(start + n_per_part, n_coded), TILE):
        n = first + tl.arange(0, TILE)
        is_there = n < n_coded
        words = tl.load(key_at + n[None, :], mask=is_there[None, :], other=0)
        codes = _unpacked(words, BITS, 1, WORDS, TILE)
        if BY_TOKEN:
            scale = tl.load(key_scale + head * key_scale_head + n, mask=is_there, other=0.0).to(tl.float32)
            score = tl.dot(q, (codes - MIDDLE).to(q.dtype), input_precision=PRECISION) * (scale * scaling)[None, :]
        else:
            channel = head * key_scale_head + (first // TILE) * D + d
            scale = tl.load(key_scale + channel).to(tl.float32)
            zero = tl.load(key_zero + channel).to(tl.float32)
            key = (codes.to(tl.float32) * scale[:, None] + zero[:, None]).to(q.dtype)
            score = tl.dot(q, key, input_precision=PRECISION) * scaling
        score = tl.where(is_there[None, :], score, float("-inf"))
        words = tl.load(value_at + n[None, :], mask=is_there[None, :], other=0)
        codes = _unpacked(words, BITS, C, WORDS // C, TILE)
        if BY_TOKEN:
            scale = tl.load(value_scale + head * value_scale_head + n, mask=is_there, other=0.0).to(tl.float32)
            value = tl.trans((codes - MIDDLE).to(q.dtype))
            highest, total, mixed = _attended(score, value, highest, total, mixed, scale[None, :], PRECISION)
        else:
            group = head * value_scale_head + channels[:, None] * value_scale_row + n[None, :]
            scale = tl.load(value_scale + group, mask=is_there[None, :], other=0.0).to(tl.float32)
            zero = tl.load(value_zero + group, mask=is_there[None, :], other=0.0).to(tl.float32)
            numbers = codes.to(tl.float32) * _of_channels(scale, S, C, TILE) + _of_channels(zero, S, C, TILE)
            value = tl.trans(numbers.to(q.dtype))
            highest, total, mixed = _attended(score, value, highest, total, mixed, 1.0, PRECISION)
    if at == n_parts - 1:
        for first in range(0, n_recent, TILE):
            n = first + tl.arange(0, TILE)
            is_there = n < n_recent
            key_place = recent_key + head * recent_head + n[None, :] * D + d[:, None]
            key = tl.load(key_place, mask=is_there[None, :], other=0.0)
            score = tl.dot(q, key, input_precision=PRECISION) * scaling
            score = tl.where(is_there[None, :], score, float("-inf"))
            value_place = recent_value + head * recent_head + n[:, None] * D + d[None, :]
            value = tl.load(value_place, mask=is_there[:, None], other=0.0)
            highest, total, mixed = _attended(score, value, highest, total, mixed, 1.0, PRECISION)
    place = (head * n_parts + at) * G + row
    tl.store(highest_out + place, highest, mask=is_row)
    tl.store(total_out + place, total, mask=is_row)
    tl.store(mixed_out + place[:, None] * D + d[None, :], mixed, mask=is_row[:, None])


@triton.jit(do_not_specialize=["n_held", "n_per_part"])
def paged_part(
    query,  # [B, H, G, D]
    keys,  # [blocks, H, BLOCK, D]
    values,
    table,  # int64 [B, n]
    highest_out,  # as `part`
    total_out,
    mixed_out,
    n_held,
    n_per_part,
    scaling,
    n_heads,
    between_blocks,  # numbers
    table_row,
    BLOCK: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, at = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, d = tl.arange(0, ROWS), tl.arange(0, D)
    is_row = row < G
    q = tl.load(query + head * G * D + row[:, None] * D + d[None, :], mask=is_row[:, None], other=0.0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    start = at * n_per_part
    for first in range(start, tl.minimum(start + n_per_part, n_held), TILE):
        n = first + tl.arange(0, TILE)
        is_there = n < n_held
        block = tl.load(table + head // n_heads * table_row + n // BLOCK, mask=is_there, other=0)
        place = block * between_blocks + (head % n_heads * BLOCK + n % BLOCK) * D
        key = tl.load(keys + place[None, :] + d[:, None], mask=is_there[None, :], other=0.0)
        score = tl.dot(q, key, input_precision=PRECISION) * scaling
        score = tl.where(is_there[None, :], score, float("-inf"))
        value = tl.load(values + place[:, None] + d[None, :], mask=is_there[:, None], other=0.0)
        highest, total, mixed = _attended(score, value, highest, total, mixed, 1.0, PRECISION)
    place = (head * tl.num_programs(1) + at) * G + row
    tl.store(highest_out + place, highest, mask=is_row)
    tl.store(total_out + place, total, mask=is_row)
    tl.store(mixed_out + place[:, None] * D + d[None, :], mixed, mask=is_row[:, None])


@triton.jit(do_not_specialize=["n_parts"])
def join(
    highest_in,
    total_in,
    mixed_in,
    output,  # [B, H, G, D]
    n_parts,
    G: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The parts of one query head as one softmax."""
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, d = tl.arange(0, PARTS), tl.arange(0, D)
    is_there = part < n_parts
    place = (head * n_parts + part) * G + row
    highest = tl.load(highest_in + place, mask=is_there, other=float("-inf"))
    share = tl.exp(highest - tl.max(highest, 0))
    total = tl.sum(share * tl.load(total_in + place, mask=is_there, other=0.0), 0)
    mixed = tl.load(mixed_in + place[:, None] * D + d[None, :], mask=is_there[:, None], other=0.0)
    answer = tl.sum(share[:, None] * mixed, 0) / total
    tl.store(output + (head * G + row) * D + d, answer.to(output.dtype.element_ty))
