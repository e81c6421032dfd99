"""How a rule and a candidate are said, with links to the records that its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.advise.candidates import Candidate
from pipeline.advise.selection import Needs
from pipeline.findings import quantities as q
from pipeline.findings.evidence import Row
from pipeline.findings.means import PROTOCOL
from pipeline.record import Interval
from pipeline.report.tables import link

SPEEDS = {
    "not_slower": "decode steps that are found neither slower than the full cache's nor undecided",
    "faster": "decode steps that are found faster than the full cache's",
}
OBJECTIVES = {
    "memory": "the fewest bytes",
    "speed": "the fastest decode steps, and where these are not told apart the fewest bytes",
    "quality": "the most recall, and where it is not told apart the fewest bytes",
}


def rule(needs: Needs) -> str:
    """`at least 95.0 % of recall, query-aware, and at most 50.0 % of the bytes; of these, the fewest bytes`"""
    asked = bounds(needs.model_dump())
    return f"{q.words(asked) if asked else 'no bound'}; of these, {OBJECTIVES[needs.objective]}"


def bounds(needs: Mapping[str, Any]) -> list[str]:
    """Of a rule, or of the part of one that an answer settles."""
    protocol = f" ({PROTOCOL[needs['protocol']]})" if needs.get("protocol") else ""
    said = []
    if needs.get("min_recall") is not None:
        said.append(f"at least {q.share(needs['min_recall'])} of recall{protocol}")
    if needs.get("max_text_loss") is not None:
        said.append(f"at most {q.decimal(needs['max_text_loss'])} nats lost on text")
    if needs.get("max_share") is not None:
        said.append(f"at most {q.share(needs['max_share'])} of the bytes")
    if needs.get("max_step") is not None:
        said.append(f"at most {q.ratio(needs['max_step'])} of the decode step")
    return [*said, *([SPEEDS[needs["speed"]]] if needs.get("speed") in SPEEDS else [])]


def beside(one: Candidate, protocol: str, reports_dir: Path) -> str:
    """Bytes, time and quality of a candidate that was timed and judged."""
    timed, judged, recall = one.timed, one.judged, one.recall(protocol)
    assert timed and judged
    moved = f" ({q.share(timed.elsewhere)} of them outside the device)" if timed.elsewhere else ""
    said = [f"{q.share(timed.share)} of the bytes{moved} and {step(one)}, at {_at(timed.row, reports_dir)}"]
    quality = [f"{_share_interval(recall)} of recall ({PROTOCOL[protocol]})"] if recall else []
    quality += [f"{q.signed_interval(one.text, 3)} nats on text"] if one.text else []
    said += [f"{q.words(quality)}, at {_at(judged.row, reports_dir)}"] if quality else []
    return "; ".join(said)


def step(one: Candidate) -> str:
    """`0.92× [0.88, 0.97] of the decode step (faster)`"""
    if one.timed is None or one.decode is None:
        return "no measured decode step"
    return f"{q.ratio_interval(one.decode)} of the decode step ({one.timed.verdict})"


def kept(one: Candidate) -> str:
    """Recall where the question came later, and where it was known: `34.1 % / 90.2 %`."""
    found = (one.recall(protocol) for protocol in reversed(PROTOCOL))
    return " / ".join(q.share(recall.estimate) if recall else q.DASH for recall in found)


def complexity(one: Candidate, full: Sequence[Row]) -> str:
    """How many parts are others than those of the full cache, and on which axes."""
    own, reference = one.row.config("strategy"), full[0].config("strategy") if full else {}
    axes = [axis for axis, part in own.items() if isinstance(part, dict) and axis != "cache"]
    changed = [axis for axis in axes if part_of(own, axis) != part_of(reference, axis)]
    return f"{q.plural(len(changed), 'part')}: {', '.join(changed)}" if changed else q.plural(0, "part")


def part_of(config: Mapping[str, Any], axis: str) -> str:
    part = config.get(axis)
    return str(part.get("_target_")) if isinstance(part, dict) else ""


def _at(row: Row, reports_dir: Path) -> str:
    return f"{link(row, q.count(row.cell.seq_len), reports_dir)} tokens"


def _share_interval(value: Interval) -> str:
    ends = f" [{q.share(value.low)}, {q.share(value.high)}]" if value.n != 1 else ""
    return q.share(value.estimate) + ends
