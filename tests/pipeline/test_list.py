"""The list: every file to choose is a line of its own, without loading anything heavy."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from pipeline import ROOT
from pipeline.list import CONF, tables

GROUPS = ("strategy", "model", "weights", "engine", "level", "workload", "profile")
FILES = [file for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
PARTS = sorted((CONF / "strategy").glob("*/*.yaml"))


def listed(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80"}  # narrower than any table, as a pipe is by default
    command = [sys.executable, *flags, "-m", "pipeline.list"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return listed().stdout.splitlines()


def lines_of(lines: list[str], file: Path) -> list[list[str]]:
    """The rows that start with the file's name, in the tables headed by its group; words split at two blanks."""
    found, group = [], ""
    for line, below in pairwise(lines):
        words = re.split(r"\s{2,}", line.strip())
        if below.strip().startswith("─"):  # a level is called as a group is
            group = words[0]
        elif words[0] == file.stem and group == file.parent.name:
            found.append(words)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_file_to_choose_has_its_line(lines, file):
    assert len(lines_of(lines, file)) == (2 if file.parent.name == "strategy" else 1)


@pytest.mark.parametrize("file", PARTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_part_is_listed_with_its_axis(lines, file):
    (line,) = (line for line in lines if line.split()[:1] == [f"strategy/{file.parent.name}"])
    assert file.stem in line.replace(",", " ").split()[1:]


@pytest.mark.parametrize("file", sorted((CONF / "strategy").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_technique_is_told_whole_in_a_pipe(lines, file):
    node = OmegaConf.load(file)
    chosen = {axis: part for default in node.defaults if default != "_self_" for axis, part in default.items()}
    told, axes = lines_of(lines, file)
    assert told == [file.stem, node.title, node.paper or "-", node.summary.strip()]
    assert axes == [file.stem, " ".join(f"{axis}={part}" for axis, part in chosen.items())]


def test_a_workload_names_the_model_that_it_measures(lines):
    assert lines_of(lines, CONF / "workload/cost.yaml")[0][1] == "bench"
    assert lines_of(lines, CONF / "workload/quality.yaml")[0][1] == "tiny"


def test_a_pipe_gets_plain_text():
    done = listed()
    assert "\x1b" not in done.stdout
    assert not done.stderr


def test_a_narrow_terminal_folds_and_loses_nothing():
    shown = io.StringIO()
    console = Console(width=60, force_terminal=True, color_system=None, file=shown)
    for table in tables():
        console.print(table)
    assert "…" not in shown.getvalue()
    assert max(len(line) for line in shown.getvalue().splitlines()) <= 60


def test_listing_imports_nothing_heavy():
    """What was imported is the law: how long it takes says as much about the machine."""
    imported = listed("-X", "importtime").stderr
    assert "omegaconf" in imported
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines()}
    assert not packages & {"torch", "transformers", "hydra", "strategies", "wandb", "dvc"}
