import torch

from strategies.token.random import RandomScorer
from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = False


def loser(row: Row) -> Loser:
    def lowest(held: list[int], newest: int) -> int:
        keys, old = torch.empty(1, row.head + 1, len(held), 1), [token for token in held if token <= newest - 16]
        score = RandomScorer().score(keys, keys, torch.tensor(held)[None, None], row.layer)[0, row.head].tolist()
        return min(old, key=dict(zip(held, score, strict=True)).__getitem__)

    return lowest
