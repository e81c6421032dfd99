"""All simulations of a plan: policies, block sizes, techniques, and the cases that can be counted on paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from hydra.utils import instantiate

from pipeline import models
from pipeline.memory.costs import kv_bytes_per_token, weight_bytes
from pipeline.serving import contiguous, trace
from pipeline.serving.cases import counted
from pipeline.serving.contiguous import Contiguous
from pipeline.serving.paged import Paged
from pipeline.serving.plan import Plan
from pipeline.serving.results import Load, OfPolicy, OfTechnique, Policy, Served, Serving, Size, Unsized
from pipeline.serving.simulate import Memory, require_room, simulate
from pipeline.serving.sizes import sizes
from pipeline.serving.trace import Request

DECIMAL_GB = 10**9


def computed(plan: Plan, progress: Callable[[str], None] = lambda said: None) -> Serving:
    """`progress` is told what comes next. Raises ValueError for memory that is too small."""
    weights, per_token = _bytes(plan)
    if not per_token:
        raise ValueError(f"model={plan.model.label}: its cache does not grow with every token; valid: a model whose "
                         "attention sees all of them")  # fmt: skip
    room = int(plan.gpu_gb * DECIMAL_GB) - weights
    if room < per_token:
        raise ValueError(f"gpu_gb={plan.gpu_gb:g}: the weights of {plan.model.label} alone take "
                         f"{weights / DECIMAL_GB:.1f} GB; valid: more, so that keys and values have room")  # fmt: skip
    simulation = Simulation(plan, room, per_token)
    requests = simulation.requests(plan.trace.arrivals_per_step)
    many = simulation.requests(plan.techniques.arrivals_per_step)
    simulation.require_room(requests)
    progress("what techniques keep of a sequence")
    sized = sizes(plan)
    return Serving(
        plan=plan,
        weight_bytes=weights,
        room_bytes=room,
        load=_load(requests),
        policies=list(simulation.policies(requests, progress)),
        block_sizes=list(simulation.block_sizes(requests, progress)),
        techniques_load=_load(many),
        techniques=list(simulation.techniques(sized, many, progress)),
        unsized=_unsized(sized),
        cases=counted(plan.cases, simulation.new_blocks),
    )


class Simulation:
    def __init__(self, plan: Plan, room_bytes: int, bytes_per_token: int):
        self.plan, self.room_bytes = plan, room_bytes
        self.full = Size(slot_bytes=bytes_per_token, fixed=0, keeps=1.0, grows=True)
        self.new_blocks = instantiate(plan.allocator)

    def requests(self, arrivals_per_step: float) -> list[Request]:
        asked = self.plan.trace.model_copy(update={"arrivals_per_step": arrivals_per_step})
        return trace.requests(asked, n_steps=self.plan.n_steps, max_len=self.plan.max_len, seed=self.plan.seed)

    def require_room(self, requests: Sequence[Request]) -> None:
        """Before anything takes time. Raises ValueError."""
        for memory in (*dict(self._memories()).values(), *(self.paged(self.full, n) for n in self.plan.block_sizes)):
            require_room(requests, memory)

    def policies(self, requests: Sequence[Request], progress: Callable[[str], None]) -> Iterator[OfPolicy]:
        block_size = self.plan.block_size
        for policy, memory in self._memories():
            progress(policy)
            of_blocks = block_size if isinstance(memory, Paged) else None
            yield OfPolicy(policy=policy, block_size=of_blocks, served=self._served(requests, memory))

    def _memories(self) -> Iterator[tuple[Policy, Memory]]:
        n_slots = int(self.room_bytes // self.full.slot_bytes)
        most = self.plan.max_len
        yield "contiguous_longest", Contiguous(n_slots, contiguous.longest(most))
        yield "contiguous_power_of_two", Contiguous(n_slots, contiguous.power_of_two(most))
        yield "contiguous_exact", Contiguous(n_slots, contiguous.exact)
        paged = partial(self.paged, self.full, self.plan.block_size)
        yield "paged", paged()
        yield "paged_swapping", paged(swaps=True)
        yield "paged_sharing", paged(shares=True)

    def block_sizes(self, requests: Sequence[Request], progress: Callable[[str], None]) -> Iterator[OfPolicy]:
        for block_size in self.plan.block_sizes:
            progress(f"blocks of {block_size}")
            served = self._served(requests, self.paged(self.full, block_size))
            yield OfPolicy(policy="paged", block_size=block_size, served=served)

    def techniques(
        self, sized: dict[str, Size | str], requests: Sequence[Request], progress: Callable[[str], None]
    ) -> Iterator[OfTechnique]:
        for size, names in _by_value({name: size for name, size in sized.items() if isinstance(size, Size)}):
            progress(", ".join(names))
            served = self._served(requests, self.paged(size, self.plan.block_size))
            yield OfTechnique(techniques=names, size=size, served=served)

    def paged(self, size: Size, block_size: int, **options: bool) -> Paged:
        n_blocks = int(self.room_bytes // (size.slot_bytes * block_size))
        if not n_blocks:
            raise ValueError(f"block_size={block_size}: memory has room for {self.room_bytes // size.slot_bytes:.0f} "
                             "tokens; valid: a block that fits in")  # fmt: skip
        blocks = self.new_blocks(n_blocks=n_blocks, block_size=block_size)
        return Paged(blocks, size, watermark=round(self.plan.watermark * n_blocks), **options)

    def _served(self, requests: Sequence[Request], memory: Memory) -> Served:
        require_room(requests, memory)
        return simulate(requests, memory, self.plan.n_steps)


def _bytes(plan: Plan) -> tuple[int, int]:
    """Of the weights, and of one token's keys and values, nothing compressed."""
    with models.quiet():
        model = models.outlined(models.shape(plan.model), plan.dtype)
    return weight_bytes(model), kv_bytes_per_token(model.config, model.dtype)


def _load(requests: Sequence[Request]) -> Load:
    n = len(requests)
    return Load(
        n_requests=n,
        n_sharing=sum(request.prefix is not None for request in requests),
        prompt_mean=sum(request.n_prompt for request in requests) / n,
        output_mean=sum(request.n_output for request in requests) / n,
        longest=max(request.n_tokens for request in requests),
    )


def _unsized(sized: dict[str, Size | str]) -> list[Unsized]:
    reasons = {name: reason for name, reason in sized.items() if isinstance(reason, str)}
    return [Unsized(techniques=names, reason=reason) for reason, names in _by_value(reasons)]


def _by_value(found: dict[str, Any]) -> list[tuple[Any, list[str]]]:
    """Each value once, with the names that have it."""
    names: dict[Any, list[str]] = {}
    for name, value in found.items():
        names.setdefault(value, []).append(name)
    return list(names.items())
