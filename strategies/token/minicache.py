"""MiniCache: two neighbouring layers hold one direction for each token, and a norm each (arXiv 2405.14366)."""

from __future__ import annotations

from collections.abc import Sequence

from strategies.token.merged_pair import LowerLayer, Shared, UpperLayer
from strategies.token.merging import Merging
from strategies.token.parts import Storage, Storages


class MiniCache:
    """From the middle layer up, keys and values of two layers are interpolated on the sphere, at `t` from the lower.

    The most distant tokens of a head, keys and values apart, are retained as they were. Two rules: by default one token
    in `block_size`, 5 %, so that shapes do not depend on the data; with `gamma` the paper's threshold, what lies within
    that fraction of a prompt's range of angles from its largest. Unlike in the paper, what follows a prompt is merged a
    block at a time, of which at most one token is retained. Directions are held in the encoding of the lower layer; the
    rest as the model computes it.
    """

    may_evict = False

    def __init__(self, *, t: float = 0.6, block_size: int = 20, gamma: float | None = None) -> None:
        if not 0 <= t <= 1:
            raise ValueError(f"sharing.t={t}: not on the arc between two layers; valid: 0 to 1")
        if block_size < 1:
            raise ValueError(f"sharing.block_size={block_size}: not a number of tokens; valid: 1 or more")
        if gamma is not None and not 0 <= gamma <= 1:
            raise ValueError(f"sharing.gamma={gamma}: not a fraction; valid: 0 to 1, or null")
        self.merging = Merging(t, block_size, gamma)

    def __call__(self, storages: Storages, layers: Sequence[int]) -> Storages:
        """Raises ValueError where the upper half of the layers cannot be paired."""
        upper_half = layers[len(layers) // 2 :]
        if len(upper_half) % 2:
            raise ValueError(f"sharing=MiniCache: of {len(layers)} layers that hold all tokens the upper half has "
                             f"{len(upper_half)}, which makes no pairs; "
                             "valid: an even number, or sharing=none")  # fmt: skip
        return PairedStorages(storages, dict(zip(upper_half[1::2], upper_half[::2], strict=True)), self.merging)


class PairedStorages:
    """The storages of one cache. An object, so that a copied cache pairs layers of its own."""

    def __init__(self, storages: Storages, lower_of: dict[int, int], merging: Merging) -> None:
        self.storages, self.lower_of, self.merging = storages, lower_of, merging
        self.waiting: dict[int, LowerLayer] = {}

    def __call__(self, layer_idx: int) -> Storage:
        if layer_idx in self.lower_of:
            return UpperLayer(self.waiting.pop(self.lower_of[layer_idx]))
        if layer_idx not in self.lower_of.values():
            return self.storages(layer_idx)
        self.waiting[layer_idx] = LowerLayer(Shared(self.storages(layer_idx), self.merging))
        return self.waiting[layer_idx]
