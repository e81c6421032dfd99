"""How numbers are written: one function per kind of quantity, each with its unit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from pipeline.record import Interval

TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"
GLUE = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"  # stands where there is nothing to show


def count(value: float) -> str:
    return f"{value:,.0f}"


def ratio(value: float) -> str:
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "∞"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}{TIMES}"


def ratio_interval(value: Interval) -> str:
    """One sample has no interval; the verdict beside it says so."""
    ends = "" if value.n == 1 or not math.isfinite(value.estimate) else f" {ratio_ends(value)}"
    return ratio(value.estimate) + ends


def ratio_ends(value: Interval) -> str:
    if value.n == 1 or not math.isfinite(value.estimate):
        return DASH
    low, high = (ratio(end).removesuffix(TIMES) for end in (value.low, value.high))
    return f"[{low},{GLUE}{high}]"


def share(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.0f}{GLUE}%" if value in (0, 1) else f"{100 * value:.1f}{GLUE}%"


def decimal(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS) if math.isfinite(value) else "undefined"


def decimal_interval(value: Interval, digits: int = 2) -> str:
    ends = f" [{decimal(value.low, digits)},{GLUE}{decimal(value.high, digits)}]"
    return decimal(value.estimate, digits) + (ends if value.n != 1 and math.isfinite(value.estimate) else "")


def signed(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", MINUS) if math.isfinite(value) else "undefined"


def signed_interval(value: Interval, digits: int = 2) -> str:
    ends = f" [{signed(value.low, digits)},{GLUE}{signed(value.high, digits)}]"
    return signed(value.estimate, digits) + (ends if value.n != 1 and math.isfinite(value.estimate) else "")


def seconds(value: float) -> str:
    if not math.isfinite(value):
        return "undefined"
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e3, "ms")) if value * s >= 1), (1e6, "µs"))
    return f"{three(value * scale)}{GLUE}{unit}"


def data(n_bytes: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{three(n_bytes / size)}{GLUE}{unit}"
    return f"{n_bytes:.0f}{GLUE}B"


def three(value: float) -> str:
    """Three significant digits, zeros kept, so that a column lines up."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


def tick(text: str) -> str:
    """Without the zeros that a column needs and an axis does not: `40.0 ms` -> `40 ms`."""
    return re.sub(r"\.?0+$", "", text.split(GLUE)[0]) + text[text.index(GLUE) :] if "." in text else text


def per_second(value: float, unit: str) -> str:
    """Decimal giga-units, as hardware is advertised: 19.8 GB/s, 120 GFLOP/s."""
    return f"{three(value / 1e9)}{GLUE}G{unit}/s"


def task(name: str) -> str:
    """`multi_key_8` -> `multi key 8`"""
    return name.replace("_", " ")


def plural(n: int, noun: str) -> str:
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def words(items: Iterable[str]) -> str:
    """`a, b and c`"""
    *head, last = list(items)
    return f"{', '.join(head)} and {last}" if head else last


def free_text(text: str) -> str:
    """Text from a record on one line, safe inside a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") or DASH
