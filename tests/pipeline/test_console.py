"""What a run shows is whole in a narrow terminal, plain in a pipe, and says how long it goes on."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import ROOT, console
from pipeline.grid import Done, Grid
from tests.pipeline.report import factory

PATH = Path("results/cell.json")
LONG = "a_model_of_somebody_with_a_name_that_is_longer_than_any_terminal_" * 2
PROGRESS = """
import pathlib
from pipeline import console
from pipeline.grid import Done
from tests.pipeline.report import factory
with console.progress(2, "attention_sink on " + "a-long-name" * 9) as announce:
    announce(Done(factory.timed("attention_sink"), pathlib.Path("cell.json"), reused=False))
"""


def cells(model: str = "bench", n: int = 5) -> list[Done]:
    """Cells of a grid with cost and quality, so that every column is filled."""
    judged = factory.judged("sliding_window").quality
    records = [factory.timed("sliding_window", 512 * 2**i, model=model) for i in range(n)]
    return [Done(record.model_copy(update={"quality": judged}), PATH, reused=False) for record in records]


def shown(monkeypatch: pytest.MonkeyPatch, done: list[Done], width: int | None) -> list[str]:
    """The lines of `show` on a terminal of this width, or in a pipe."""
    written = io.StringIO()

    def build(stderr: bool = False, **options: int) -> Console:
        terminal = {"width": width, "force_terminal": True, "color_system": None} if width else options
        return Console(file=written, **terminal)

    monkeypatch.setattr(console, "Console", build)
    console.show(Grid(done, removed=[], tracking_path=None), ROOT)
    return written.getvalue().splitlines()


def values(done: list[Done]) -> set[str]:
    return {value for one in done for value in console._row(one.record)}


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_terminal_of_any_width_shows_every_value_whole(monkeypatch, width):
    lines = shown(monkeypatch, cells(), width)
    assert "…" not in "".join(lines)
    assert all(any(value in line for line in lines) for value in values(cells()))
    assert max(len(line) for line in lines if not line.startswith("wrote")) <= width


def test_a_wide_terminal_has_a_line_for_each_cell(monkeypatch):
    lines = [line for line in shown(monkeypatch, cells(), 200) if "sliding_window" in line]
    assert len(lines) == 5
    assert all("MiB" in line and "full" in line for line in lines)


def test_a_name_longer_than_the_terminal_is_folded_not_cut(monkeypatch):
    text = re.sub(r"\s", "", "".join(shown(monkeypatch, cells(LONG, n=1), 80)))
    assert LONG[:30] in text
    assert "…" not in text
    assert text.count("_") >= LONG.count("_")


def test_a_pipe_gets_one_plain_line_for_each_cell_however_long(monkeypatch):
    lines = shown(monkeypatch, cells(LONG), None)
    assert not [line for line in lines if "\x1b" in line]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if LONG in line]
    assert rows == [[cell for cell in console._row(done.record) if cell] for done in cells(LONG)]


def in_a_terminal(program: str) -> str:
    """What the program writes on a terminal of 80 columns."""
    own, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=terminal, stderr=terminal) as running:
        os.close(terminal)
        written = b""
        try:
            while part := os.read(own, 65536):
                written += part
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
    os.close(own)
    assert running.returncode == 0, written.decode()
    return written.decode()


def test_progress_on_a_terminal_says_what_how_many_how_long_and_how_long_still():
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", in_a_terminal(PROGRESS))
    drawn = [line for line in re.split(r"[\r\n]+", text) if "left" in line]
    assert all(len(line.rstrip()) <= 80 for line in drawn)
    assert re.fullmatch(r"attention_sink on .*… .* 1/2 0:00:\d\d left (-:--:--|0:00:\d\d)", drawn[-1].strip())
    assert "[1/2] attention_sink on bench, 512 tokens, batch 1: ok after 1.0 s" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_progress_in_a_pipe_is_a_plain_line_for_each_cell(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PROGRESS], cwd=ROOT, env=environment, capture_output=True, check=True)
    told = [line for line in done.stderr.decode("ascii").splitlines() if "machine is busy" not in line]
    assert told == ["[1/2] attention_sink on bench, 512 tokens, batch 1: ok after 1.0 s"]
    assert not done.stdout


def test_a_task_that_the_full_cache_cannot_do_is_named_beside_the_table(monkeypatch):
    judged = factory.judged("sliding_window")
    assert judged.quality
    tasks = [judged.quality.tasks[0].model_copy(update={"accuracy_full": 0.1}), *judged.quality.tasks[1:]]
    failing = judged.model_copy(update={"quality": judged.quality.model_copy(update={"tasks": tasks})})
    for record, named in ((judged, False), (failing, True)):
        said = "\n".join(shown(monkeypatch, [Done(record, PATH, reused=False)], width=None))
        assert (f"the full cache itself mostly fails at {tasks[0].task}" in said) is named


def test_trials_that_differ_too_much_are_said_to_and_not_quoted(monkeypatch):
    timed = factory.timed("sliding_window")
    assert timed.cost
    wide = timed.cost.tpot_ratio.model_copy(update={"estimate": 3.75, "low": 0.0, "high": 534_715.6})
    record = timed.model_copy(update={"cost": timed.cost.model_copy(update={"tpot_ratio": wide})})
    said = "\n".join(shown(monkeypatch, [Done(record, PATH, reused=False)], width=None))
    assert "too noisy" in said and "a machine that does nothing else" in said and "534" not in said


def test_a_busy_machine_is_told_before_anything_is_measured(monkeypatch, capsys):
    for load, told in ((0.5, False), (64.0, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        with console.progress(1, "full on tiny"):
            pass
        assert ("this machine is busy (load 64)" in capsys.readouterr().err) is told


def test_weights_are_shown_where_the_two_sides_differ_in_them(monkeypatch):
    measured = factory.timed("full", weights="bnb_nf4")
    assert measured.cost
    arms = {name: getattr(measured.cost, name) for name in ("technique", "full")}
    sizes = {"technique": {"all": 40 << 20}, "full": {"all": 160 << 20}}
    changed = {name: arm.model_copy(update={"weight_bytes": sizes[name]}) for name, arm in arms.items()}
    held = measured.model_copy(update={"cost": measured.cost.model_copy(update=changed)})
    said = "\n".join(shown(monkeypatch, [Done(held, PATH, reused=False)], width=None))
    assert "full weights=bnb_nf4" in said and "40.0 MiB" in said and "25%" in said
    assert "of plain" not in "\n".join(shown(monkeypatch, [Done(measured, PATH, reused=False)], width=None))
