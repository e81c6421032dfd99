from typing import Any

import torch

from tests.strategies.reference import Loser

IN_CACHE_POSITIONS = False


def loser(scorer: Any, layer: int, head: int) -> Loser:
    def lowest(held: list[int], newest: int) -> int:
        key, old = torch.empty(1, head + 1, len(held), 1), [token for token in held if token <= newest - 16]
        score = scorer.score(key, key, torch.tensor(held)[None, None], layer)[0, head].tolist()
        return min(old, key=dict(zip(held, score, strict=True)).__getitem__)

    return lowest
