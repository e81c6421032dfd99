"""Where keys and values lie in memory: heads before tokens, tokens before heads, or tokens in pages.

A cache holds all layers; it appends in place and attends with one query of each row.
Shapes: L layers, B sequences, H KV heads, R query heads for each of them, T tokens, D head_dim; N pages of P tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # query [B, H, R, D], keys and values [B, H, T, D] to [B, H, R, D]
RUN = 32  # pages that are gathered at once: few enough for a core's own cache, many enough to be worth the calls


@dataclass(frozen=True)
class Shape:
    n_layers: int
    batch: int
    n_kv_heads: int
    head_dim: int
    capacity: int  # tokens
    dtype: torch.dtype = torch.float32


@dataclass
class Tokens:
    """What each layer adds: keys and values [L, B, H, T, D]."""

    key: Tensor
    value: Tensor


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The kernel of torch, which takes strides as they are; query heads of one KV head are rows, none is repeated."""
    return scaled_dot_product_attention(query, key, value)


def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A product, a softmax and a product; of one sequence they take strides as they are, of several they copy."""
    scores = query @ key.mT
    return scores.mul_(query.shape[-1] ** -0.5).softmax(-1) @ value


class Contiguous:
    """One tensor for keys and one for values in each layer, [B, H, capacity, D] by its strides.

    In memory it is [B, H, capacity, D], or [B, capacity, H, D] where `tokens_first`: then a token lies in one piece,
    and the tokens of a head lie H * D numbers apart.
    """

    def __init__(self, shape: Shape, *, tokens_first: bool) -> None:
        self.n_tokens = 0
        self._layers = [(_empty(shape, tokens_first), _empty(shape, tokens_first)) for _ in range(shape.n_layers)]

    def append(self, new: Tokens) -> None:
        end = self.n_tokens + new.key.shape[-2]
        for (key_BHTD, value_BHTD), more_keys, more_values in zip(self._layers, new.key, new.value, strict=True):
            key_BHTD[:, :, self.n_tokens : end] = more_keys
            value_BHTD[:, :, self.n_tokens : end] = more_values
        self.n_tokens = end

    def attend(self, query_LBHRD: Tensor, way: Way = fused) -> list[Tensor]:
        return [
            way(query, key[:, :, : self.n_tokens], value[:, :, : self.n_tokens])
            for query, (key, value) in zip(query_LBHRD, self._layers, strict=True)
        ]


def _empty(shape: Shape, tokens_first: bool) -> Tensor:
    """[B, H, capacity, D] by its strides."""
    middle = (shape.capacity, shape.n_kv_heads) if tokens_first else (shape.n_kv_heads, shape.capacity)
    made = torch.zeros(shape.batch, *middle, shape.head_dim, dtype=shape.dtype)
    return made.transpose(1, 2) if tokens_first else made


@dataclass
class Paged:
    """Pages [N, P, H, D] that a table assigns to sequences, in random order, as if others had come and gone; one table
    for all layers (Kwon et al. 2023, arXiv:2309.06180).

    torch has no kernel that reads through a table, so attention gathers `RUN` pages at a time, in the order of the
    table, into one small workspace, and multiplies from there: every page of keys is copied once before the softmax
    and every page of values once after it, and no copy of the whole cache exists at any time.
    """

    shape: Shape
    page_size: int
    seed: int = 0
    n_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        n_pages = -(-self.shape.capacity // self.page_size)
        order = torch.randperm(self.shape.batch * n_pages, generator=torch.Generator().manual_seed(self.seed))
        self.table_BN = order.view(self.shape.batch, n_pages)
        page = (self.page_size, self.shape.n_kv_heads, self.shape.head_dim)
        self._layers = [
            tuple(torch.zeros(order.numel(), *page, dtype=self.shape.dtype) for _ in ("keys", "values"))
            for _ in range(self.shape.n_layers)
        ]
        self._workspace = torch.empty(self.shape.batch * RUN, *page, dtype=self.shape.dtype)

    def append(self, new: Tokens) -> None:
        end = self.n_tokens + new.key.shape[-2]
        position_T = torch.arange(self.n_tokens, end)
        page_BT = self.table_BN[:, position_T // self.page_size]
        slot = (page_BT * self.page_size + position_T % self.page_size).flatten()
        for pages, more in zip(self._layers, zip(new.key, new.value, strict=True), strict=True):
            for pages_NPHD, more_BHTD in zip(pages, more, strict=True):
                pages_NPHD.flatten(0, 1)[slot] = more_BHTD.transpose(1, 2).flatten(0, 1)
        self.n_tokens = end

    def attend(self, query_LBHRD: Tensor) -> list[Tensor]:
        return [self._attend(query, key, value) for query, (key, value) in zip(query_LBHRD, self._layers, strict=True)]

    def _attend(self, query_BHRD: Tensor, key_NPHD: Tensor, value_NPHD: Tensor) -> Tensor:
        scaled = query_BHRD * query_BHRD.shape[-1] ** -0.5
        probs = torch.cat([scaled @ run.mT for run in self._runs(key_NPHD)], dim=-1).softmax(-1)
        answer = torch.zeros_like(query_BHRD)
        for part, run in zip(probs.split(RUN * self.page_size, dim=-1), self._runs(value_NPHD), strict=True):
            answer += part @ run
        return answer

    def _runs(self, pages_NPHD: Tensor) -> Iterator[Tensor]:
        """[B, H, T, D] of the next tokens, all in the same workspace: to be used before the next one is asked for."""
        left, n_pages = self.n_tokens, -(-self.n_tokens // self.page_size)
        for table in self.table_BN[:, :n_pages].split(RUN, dim=1):
            gathered = self._workspace[: table.numel()]
            torch.index_select(pages_NPHD, 0, table.flatten(), out=gathered)
            run_BTHD = gathered.view(len(table), -1, *gathered.shape[2:])
            yield run_BTHD[:, :left].transpose(1, 2)
            left -= run_BTHD.shape[1]


def random_tokens(shape: Shape, n_tokens: int, generator: torch.Generator) -> Tokens:
    size: Sequence[int] = (shape.n_layers, shape.batch, shape.n_kv_heads, n_tokens, shape.head_dim)
    key, value = (torch.randn(size, generator=generator, dtype=shape.dtype) for _ in ("keys", "values"))
    return Tokens(key, value)
