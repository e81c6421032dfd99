from tests.strategies.reference import Row
from tests.strategies.rules import snapkv

IN_CACHE_POSITIONS = False
loser = snapkv.loser


def budget(row: Row, mean: int, n_prompt: int) -> int:
    """Of three layers: the middle one has the mean, the outer ones as much more and less as the prompt allows."""
    spread = min(0.95 * (mean - snapkv.WINDOW), n_prompt - mean)
    return mean + round((1 - row.layer) * spread)
