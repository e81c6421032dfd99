from tests.strategies.rules.full import IN_CACHE_POSITIONS, loser

__all__ = ["IN_CACHE_POSITIONS", "loser"]
