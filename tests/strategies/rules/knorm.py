from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = False


def loser(row: Row) -> Loser:
    return lambda held, newest: max(held, key=lambda token: row.key[token].norm().item())
