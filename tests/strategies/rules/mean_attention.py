from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = False


def loser(row: Row) -> Loser:
    def lightest(held: list[int], newest: int) -> int:
        mass, n_queries = row.received(), len(row.seen)
        old = (token for token in held if token < newest)
        return min(old, key=lambda token: mass[token].item() / (n_queries - token))

    return lightest
