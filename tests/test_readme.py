"""What the README shows works: commands are accepted, links lead somewhere, its new technique obeys the laws."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pipeline import ROOT
from pipeline.config import Experiment
from pipeline.refusals import CONF
from pipeline.report.contents import anchor

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(?:\$ )?python -m pipeline\.run( .*?)?(?: +#.*)?$", README, re.MULTILINE)
# `path`: a sentence, then the block that is the file.
NEW_FILES = dict(re.findall(r"^`([\w/.]+)`: [^\n].*?\n```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
COPIED = ("conf", "pipeline", "strategies", "tests", "models", "pyproject.toml", "params.yaml", "dvc.yaml")


def first_job(command: str) -> list[str]:
    """The overrides of a command; of a sweep, those of its first job."""
    overrides = [word for word in shlex.split(command) if not word.startswith("-")]
    return [word if "[" in word else re.sub(r"^([^=]+=[^,]+),.*", r"\1", word) for word in overrides]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--help" not in c and "key_peak" not in c])
def test_every_command_is_accepted_or_refused_as_shown(command):
    command = command.replace("FOLDER", "models/tiny").replace("FILE", "README.md")
    shown = re.search(rf"^\$ python -m pipeline\.run{re.escape(command)}\n(strategy\..*)$", README, re.MULTILINE)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [word for word in first_job(command) if not word.startswith("hydra/")])
    if shown:
        with pytest.raises(ValueError, match=re.escape(shown[1])):
            Experiment.from_hydra(cfg)
    else:
        Experiment.from_hydra(cfg)


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    headings = {anchor(line) for line in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    for named in re.findall(r"\]\(#([\w-]+)\)", README):
        assert named in headings, named


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with the README's new technique in it."""
    copy = tmp_path_factory.mktemp("project")
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(source, copy / name)
    for path, content in NEW_FILES.items():
        assert not (copy / path).exists(), f"{path}: adding a technique edits no existing file"
        (copy / path).write_text(content)
    return copy


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_new_technique_obeys_the_laws(extended):
    done = run(extended, "pytest", "tests/strategies", "tests/pipeline/test_confs.py", "-k", "key_peak", "-q")
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 20


@pytest.mark.slow
def test_the_new_technique_runs(extended):
    done = run(extended, "pipeline.run", "strategy=key_peak", "profile=smoke", "tracking=disabled")
    assert done.returncode == 0, done.stderr
    assert (extended / "results/token/key_peak").is_dir() and "key_peak" in done.stdout
