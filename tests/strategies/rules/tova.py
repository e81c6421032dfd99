from dataclasses import replace

from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = False


def loser(row: Row) -> Loser:
    def least(held: list[int], newest: int) -> int:
        heads = [replace(row, head=head).received(first=len(row.seen) - 1) for head in range(len(row.keys))]
        return min((token for token in held if token < newest), key=lambda token: sum(heads)[token].item())

    return least
