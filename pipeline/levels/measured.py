"""What a level gives for one cell."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.record import Cost, Predicted, Quality, Throughput


@dataclass(frozen=True)
class Measured:
    """The parts of its record. `skipped` says why nothing was run, `remedy` what would help; empty otherwise."""

    predicted: Predicted | None = None
    cost: Cost | None = None
    quality: Quality | None = None
    throughput: Throughput | None = None
    skipped: str = ""
    remedy: str = ""
