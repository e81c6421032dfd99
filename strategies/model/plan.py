"""Which tokens a static pattern lets live, for how long, and in which slots: all of it known before the first step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor

from strategies.model.patterns import Pattern


@dataclass(frozen=True, eq=False)
class Plan:
    """Which tokens are held when and where, known beforehand: those that the newest token seen or a later one, below
    the horizon, can see. M tokens are held at some time: a part of the prompt, and every token after it.
    """

    n_prompt: int
    positions: Tensor  # [M] ascending
    slots: Tensor  # [M]
    last_readers: Tensor  # [M]
    new_slots: list[int]  # of the tokens after the prompt
    n_alive: list[int]  # after the prompt, and after each later token
    n_used: list[int]  # slots that were ever written until then

    def held(self, n_seen: int) -> tuple[Tensor, Tensor]:
        """Positions and slots of the tokens held once `n_seen` are seen, by position."""
        alive = (self.positions < n_seen) & (self.last_readers >= n_seen - 1)
        return self.positions[alive], self.slots[alive]

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept may be asked for again while training
def planned(pattern: Pattern, n_prompt: int, horizon: int) -> Plan:
    """A new token takes the first slot whose token is dead, so no more slots are used than tokens are alive at once."""
    last = pattern.last_reader(horizon)
    held = (last >= n_prompt - 1) | (torch.arange(horizon) >= n_prompt)
    readers = last[held].tolist()
    n_held = len(readers) - (horizon - n_prompt)
    dying = defaultdict[int, list[int]](list)
    for slot, reader in enumerate(readers[:n_held]):
        dying[reader].append(slot)
    new_slots, free = list[int](), list[int]()
    n_alive, n_used = [n_held], [n_held]
    for position, reader in enumerate(readers[n_held:], start=n_prompt):
        for slot in dying.pop(position - 1, []):
            heappush(free, slot)
        new_slots.append(heappop(free) if free else n_used[-1])
        dying[reader].append(new_slots[-1])
        n_used.append(max(n_used[-1], new_slots[-1] + 1))
        n_alive.append(n_used[-1] - len(free))
    slots = torch.tensor([*range(n_held), *new_slots])
    return Plan(n_prompt, held.nonzero()[:, 0], slots, last[held], new_slots, n_alive, n_used)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept may be asked for again while training
def read_slots(pattern: Pattern, plan: Plan, position: int, device: torch.device) -> Tensor | None:
    """The slots that the query at `position` sees; None where these are all that were ever written."""
    keys = pattern.keys(position)
    if len(keys) == plan.n_used[position + 1 - plan.n_prompt]:
        return None
    return plan.slots[torch.searchsorted(plan.positions, keys)].to(device)
