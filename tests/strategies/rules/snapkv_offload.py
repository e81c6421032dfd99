from tests.strategies.rules.snapkv import IN_CACHE_POSITIONS, loser

__all__ = ["IN_CACHE_POSITIONS", "loser"]
