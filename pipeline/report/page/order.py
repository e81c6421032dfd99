"""What a table sorts by: the quantity that a cell shows, in one unit whatever unit it is written in."""

from __future__ import annotations

import math
import re

from pipeline.findings import quantities as q

INFINITE = {"∞", "all"}  # a budget of all tokens is above every number of them
SCALES = {
    "%": 0.01,
    "µs": 1e-6,
    "ms": 1e-3,
    "min": 60.0,
    "h": 3600.0,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "TiB": 2.0**40,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "M": 1e6,
    "B": 1.0,
    "GB/s": 1e9,
    "GFLOP/s": 1e9,
}
_NUMBER = re.compile(rf"[^\w+{q.MINUS}-]*([+{q.MINUS}-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s?([a-zA-Zµ%]+(?:/s)?)?")


def key(text: str) -> float | None:
    """The first number of a cell (an interval's estimate, a median before its p90); None where it shows none.

    `13.8 MiB` -> 14470348.8, `0.94× [0.92, 0.97]` -> 0.94, `−0.02 nats` -> −0.02
    """
    if text.strip() in INFINITE:
        return math.inf
    found = _NUMBER.match(text.strip())
    if found is None:
        return None
    number, unit = found.groups()
    return float(number.replace(",", "").replace(q.MINUS, "-")) * SCALES.get(unit or "", 1.0)
