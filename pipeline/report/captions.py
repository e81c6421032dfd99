"""Alternative texts of figures: what a figure shows, computed from what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Write = Callable[[float], str]


def span(found: Mapping[str, float], write: Write) -> str:
    """`from 0.91× (snapkv) to 24.0× (no_cache)`; one value stands alone."""
    usable = {name: value for name, value in found.items() if math.isfinite(value)}
    if not usable:
        return "undefined"
    low, high = min(usable, key=usable.__getitem__), max(usable, key=usable.__getitem__)
    ends = [f"{write(usable[name])} ({name})" for name in (low, high)]
    return ends[0] if len(usable) == 1 else f"from {ends[0]} to {ends[1]}"
