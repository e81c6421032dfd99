from dataclasses import replace

from tests.strategies.reference import Row
from tests.strategies.rules import snapkv

IN_CACHE_POSITIONS = False
loser = snapkv.loser


def budget(row: Row, mean: int, n_prompt: int) -> int:
    """The window, a fifth of the even share, and what the head wins of the rest against all others."""
    if n_prompt <= mean:
        return mean
    n_heads, n_open = len(row.keys), mean - snapkv.WINDOW
    n_sure = -(-n_open // 5)
    scores = [_scores(replace(row, head=head), n_prompt) for head in range(n_heads)]
    rest = sorted(((score, head) for head in range(n_heads) for score in scores[head][n_sure:]), reverse=True)
    won = sum(head == row.head for _, head in rest[: n_heads * (n_open - n_sure)])
    return snapkv.WINDOW + n_sure + won


def _scores(row: Row, n_prompt: int) -> list[float]:
    """Of every token before the window, best first: what the window's queries gave it and its neighbours."""
    first = n_prompt - snapkv.WINDOW
    mass = replace(row, seen=[list(range(t + 1)) for t in range(n_prompt)]).received(first)[:first].tolist()
    near = snapkv.NEIGHBOURS
    return sorted((sum(mass[max(0, t - near) : t + near + 1]) for t in range(first)), reverse=True)
