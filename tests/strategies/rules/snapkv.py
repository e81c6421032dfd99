from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = False
WINDOW, NEIGHBOURS = 8, 2


def loser(row: Row) -> Loser:
    def lightest(held: list[int], newest: int) -> int:
        first = len(row.seen) - WINDOW
        mass = row.received(first)[:first].tolist()
        near = {
            token: sum(mass[max(0, token - NEIGHBOURS) : token + NEIGHBOURS + 1]) for token in held if token < first
        }
        return min(near, key=near.__getitem__)

    return lightest
