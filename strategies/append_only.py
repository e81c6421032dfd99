"""What a storage cannot do where a token shares something with its neighbours, with other heads or another layer."""

from __future__ import annotations

from torch import Tensor


class AppendOnly:
    """For storages whose slots are never replaced one by one; `strategies.composition` keeps them from being asked."""

    overwrites = False

    def replace(self, slot: Tensor, key: Tensor, value: Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not replace single tokens; see `overwrites`")

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not replace single tokens; see `overwrites`")

    def write_value(self, slot: Tensor, value: Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not replace single tokens; see `overwrites`")

    def place_first(self, key: Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not replace single tokens; see `overwrites`")
