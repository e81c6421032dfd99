"""One query on coded or paged tokens by one kernel on a GPU: tokens are split into parts that many multiprocessors
attend to at once, and the softmaxes of the parts are joined (Flash-Decoding; see arXiv 2311.01282).

Codes become numbers in registers, and scores are never written to memory. `strategies.folded` is the same by plain
operations, and what runs everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KEYS_OF_A_SCALE = 32  # as many as a program looks at at once, where keys have a scale for each channel
_ROWS = 16  # the fewest that a matrix unit multiplies
_WORTH_A_PART = 256  # tokens
# Found on an H200 for 8 KV heads of 128: of tiles of 32 and 64 tokens (of pages 128 too), 2 and 4 warps (of pages 4), 1
# to 3 stages, and 4, 8 and 12 programs.
_BY_TOKEN = {"TILE": 64, "num_warps": 4, "num_stages": 1}
_BY_CHANNEL = {"TILE": KEYS_OF_A_SCALE, "num_warps": 4, "num_stages": 1}
_PAGED = {"TILE": 64, "num_warps": 4, "num_stages": 2}
_PER_PROCESSOR = 8  # programs


@dataclass(frozen=True)
class Coded:
    """Keys or values, in the layout of `strategies.token.packing`.

    With a scale for each token [B, H, slots] codes are symmetric, [B, H, W, slots], and there is no zero point. Else
    keys have both for each channel of 32 tokens [B, H, slots / 32, D], values for groups of channels [B, H, C, slots],
    of which each has words of its own [B, H, C, W, slots].
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None


def can_split(query: Tensor, mask: Tensor | None, softcap: float | None) -> bool:
    """Whether the kernel is there for it: on CUDA, with nothing hidden, and a head_dim that is a power of two."""
    plain = mask is None and softcap is None and query.dtype in _DTYPES
    head_dim = query.shape[-1]
    fits = head_dim >= _ROWS and head_dim & (head_dim - 1) == 0
    return query.is_cuda and plain and fits and not torch.compiler.is_compiling() and _has_triton()


def split_attention(
    query: Tensor,
    keys: Coded,
    values: Coded,
    n_coded: int,
    recent: tuple[Tensor, Tensor] | None = None,
    n_recent: int = 0,
    *,
    bits: int,
    scaling: float,
) -> Tensor:
    """query [B, Hq, 1, D] on the first `n_coded` coded tokens, and on the first `n_recent` of `recent` → [B, Hq, 1, D].

    `recent`: a key and a value [B, H, room, D] in the query's dtype. Products are made in that dtype, sums in single
    precision.
    """
    from strategies.token import split_kernels

    n_groups = values.codes.shape[2] if values.zero is not None else 1
    recent_key, recent_value = recent or (query, query)

    def launch(grid: tuple[int, int], n_per_part: int, made: tuple[Tensor, ...], how: dict[str, Any]) -> None:
        split_kernels.part[grid](
            query.contiguous(),
            keys.codes, keys.scale, keys.scale if keys.zero is None else keys.zero,
            values.codes, values.scale, values.scale if values.zero is None else values.zero,
            recent_key, recent_value,
            *made,
            n_coded, n_recent, n_per_part, scaling,
            keys.codes.stride(1), keys.codes.stride(-2), keys.scale.stride(1),
            values.codes.stride(1), values.codes.stride(-2), values.scale.stride(1), values.scale.stride(-2),
            recent_key.stride(1),
            BITS=bits, S=query.shape[-1] // n_groups, BY_TOKEN=keys.zero is None,
            **how, **(_BY_TOKEN if keys.zero is None else _BY_CHANNEL),
        )  # fmt: skip

    return _joined(query, keys.codes.shape[1], n_coded, launch)


def split_paged_attention(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, n_held: int, *, scaling: float
) -> Tensor:
    """As `split_attention`, on the first `n_held` tokens of the blocks that `table` [B, n] names, read where they lie.

    keys, values: pools [N, H, P, D] in the query's dtype.
    """
    from strategies.token import split_kernels

    _, n_kv_heads, block_size, _ = keys.shape

    def launch(grid: tuple[int, int], n_per_part: int, made: tuple[Tensor, ...], how: dict[str, Any]) -> None:
        split_kernels.paged_part[grid](
            query.contiguous(), keys, values, table, *made, n_held, n_per_part, scaling,
            n_kv_heads, keys.stride(0), table.stride(0), BLOCK=block_size, **how, **_PAGED,
        )  # fmt: skip

    return _joined(query, n_kv_heads, n_held, launch)


def _joined(query: Tensor, n_kv_heads: int, n_tokens: int, launch: Callable[..., None]) -> Tensor:
    """What `launch` computes of each part, as one softmax."""
    from strategies.token import split_kernels

    batch, n_heads, _, head_dim = query.shape
    group, n_held_heads = n_heads // n_kv_heads, batch * n_kv_heads
    n_parts, n_per_part = _parts(n_tokens, n_held_heads, query.device)
    highest = query.new_empty((n_held_heads, n_parts, group), dtype=torch.float32)
    made = highest, torch.empty_like(highest), query.new_empty((*highest.shape, head_dim), dtype=torch.float32)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    n_rows = max(_ROWS, 1 << (group - 1).bit_length())
    precision = "ieee" if query.dtype == torch.float32 else "tf32"  # of single precision only
    launch(
        (n_held_heads, n_parts), n_per_part, made, {"G": group, "ROWS": n_rows, "D": head_dim, "PRECISION": precision}
    )
    split_kernels.join[n_held_heads, group](
        *made, output, n_parts, G=group, D=head_dim, PARTS=1 << (n_parts - 1).bit_length()
    )
    return output


def _parts(n_tokens: int, n_held_heads: int, device: torch.device) -> tuple[int, int]:
    """How many, and of how many tokens each: whole tiles of any size, and none without a token."""
    wanted = -(-_PER_PROCESSOR * _n_processors(device) // n_held_heads)
    n_per_part = -(-n_tokens // (wanted * _WORTH_A_PART)) * _WORTH_A_PART
    n_per_part = max(n_per_part, _WORTH_A_PART)
    return max(-(-n_tokens // n_per_part), 1), n_per_part


@cache
def _n_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
