"""Rendering stays quick and small where there are many records."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.record import Record
from tests.pipeline.report import factory

MACHINES = ("machine-a", "machine-b", "machine-c")
TECHNIQUES = sorted(path.stem for path in Path("conf/strategy").glob("*.yaml") if not path.stem.startswith("hf_"))
COST = [(seq_len, batch) for seq_len in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768) for batch in (1, 4)]
QUALITY = (64, 128, 256, 384, 512, 768, 1024)
# Twice the time that it takes on a quiet machine of two slow cores, so that a busy one does not fail.
N_RECORDS, AT_MOST_S, AT_MOST_BYTES = 2000, 120, 2 << 30
# Memory of this program alone: what it reports of itself as a process begins with that of the one that started it.
# Processor time, where figures are drawn by several processes their share: the clock would count whatever else runs.
PROGRAM = """
import json, os, resource, sys
from pathlib import Path
from pipeline.report.render import render
files = render(Path(sys.argv[1]), Path(sys.argv[2]))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
own, others = (one.ru_utime + one.ru_stime for one in used)
seconds = own + others / (os.cpu_count() or 1)
held = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(json.dumps({"seconds": seconds, "bytes": max(held, used[1].ru_maxrss) << 10, "files": len(files)}))
"""


def records() -> Iterator[Record]:
    for number, name in enumerate(TECHNIQUES):
        for seq_len, batch in COST:
            yield factory.timed(name, seq_len, 0.5 + number / 30, batch=batch)
        for seq_len in QUALITY:
            yield factory.judged(name, seq_len, 0.0 if name == "full" else number / 60)


@pytest.mark.slow
def test_two_thousand_records_are_rendered_in_two_minutes_and_two_gigabytes(tmp_path: Path) -> None:
    own = list(records())[: -(-N_RECORDS // len(MACHINES))]
    for machine in MACHINES:
        factory.store(own, tmp_path / "results", machine)
    assert len(list(tmp_path.glob("results/*/*/*/*.json"))) >= N_RECORDS
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "results", tmp_path / "reports"],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(answer.stdout.splitlines()[-1])
    assert measured["seconds"] < AT_MOST_S, measured
    assert measured["bytes"] < AT_MOST_BYTES, measured
