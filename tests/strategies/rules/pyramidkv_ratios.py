from tests.strategies.reference import Row
from tests.strategies.rules import mean_attention

IN_CACHE_POSITIONS = False
loser = mean_attention.loser


def budget(row: Row, mean: int, n_prompt: int) -> int:
    """Of three layers the first two have a whole share and the last a half, beside the newest token."""
    ends = [round((mean - 1) * end) for end in (0.0, 1.2, 2.4, 3.0)]
    return 1 + ends[row.layer + 1] - ends[row.layer]
