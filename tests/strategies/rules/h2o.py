from tests.strategies.reference import Loser, Row

IN_CACHE_POSITIONS = False


def loser(row: Row) -> Loser:
    def lightest(held: list[int], newest: int) -> int:
        mass = row.received()
        return min((token for token in held if token <= newest - 8), key=lambda token: mass[token].item())

    return lightest
