from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = True


def loser(row: Row) -> Loser:
    return lambda held, newest: sorted(held)[4]
