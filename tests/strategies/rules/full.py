from tests.strategies.reference import Row

IN_CACHE_POSITIONS = False


def loser(row: Row) -> None:
    return None
