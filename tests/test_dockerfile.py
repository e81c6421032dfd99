"""The container: its recipe obeys the rules that matter, and what `make repro` reads enters the image."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest
from omegaconf import OmegaConf

from pipeline import ROOT

IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
MADE_INSIDE = {"hardware.json", "engines.json"}  # which machine it is, only the container knows


def instructions(text: str) -> list[tuple[str, str]]:
    """Keyword and arguments of every step; comments are dropped and continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    steps = lines.replace("\\\n", " ").splitlines()
    return [(step.split()[0].upper(), step.partition(" ")[2].strip()) for step in steps if step.strip()]


STEPS = instructions((ROOT / "Dockerfile").read_text())


def of(keyword: str) -> list[str]:
    return [arguments for name, arguments in STEPS if name == keyword]


def excluded(path: str, patterns: list[str] = IGNORED) -> bool:
    """As a build does it: `**/` is any depth, and a pattern also takes what lies inside what it names."""
    parts = PurePosixPath(path).parts
    heads = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(
        fnmatch(head, pattern) and (pattern.startswith("**") or head.count("/") == pattern.count("/"))
        for pattern in patterns
        for head in (*heads, *(f"x/{head}" for head in heads if pattern.startswith("**/")))
    )


def sources() -> list[str]:
    return [word for step in of("COPY") for word in step.split()[:-1] if not word.startswith("--")]


def test_patterns_are_understood_as_a_build_understands_them():
    assert excluded(".venv/bin/python", [".venv"])
    assert excluded("a/b/__pycache__/c.pyc", ["**/__pycache__"])
    assert excluded("__pycache__/c.pyc", ["**/__pycache__"])
    assert not excluded("a/.venv", [".venv"])
    assert not excluded("a/b.egg-info", ["*.egg-info"])


def test_the_base_is_given_with_a_version():
    defaults = dict(step.split("=", 1) for step in of("ARG") if "=" in step)
    for step in of("FROM"):
        image = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], step.split()[0])
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", image), image
        assert not image.endswith(":latest")


def test_it_does_not_end_as_root():
    assert of("USER")
    assert of("USER")[-1].partition(":")[0] not in ("root", "0")
    (uid,) = (step.partition("=")[2] for step in of("ARG") if step.startswith("UID="))
    assert int(uid) > 0


def test_the_distribution_gives_what_is_asked_for_and_keeps_no_lists():
    steps = [step for step in of("RUN") if "apt-get" in step]
    assert steps
    for step in steps:
        assert "apt-get update" in step
        assert "--no-install-recommends" in step
        assert "--yes" in step
        assert step.endswith("rm -rf /var/lib/apt/lists/*")
    assert not any(re.search(r"\b(apt|sudo)\s", step) for step in of("RUN"))


def test_what_a_linter_would_say_does_not_apply():
    """Rules of hadolint that are not tested elsewhere in this file, by their number."""
    steps = of("RUN")
    assert all(folder.startswith("/") for folder in of("WORKDIR"))  # DL3000
    assert not any(re.search(r"(^|[;&|]\s*)cd\s", step) for step in steps)  # DL3003: WORKDIR is for that
    assert not any(re.search(r"[^|]\|[^|]", step) for step in steps)  # DL4006: nothing is piped, so no pipefail
    assert all(step.startswith("[") for name in ("CMD", "VOLUME", "ENTRYPOINT") for step in of(name))  # DL3025
    assert not of("MAINTAINER")  # DL4000
    assert len(of("CMD")) == 1 and len(of("ENTRYPOINT")) == 0  # DL4003, DL4004
    assert any("PIP_NO_CACHE_DIR=1" in step for step in of("ENV"))  # DL3042
    names = [name for name, _ in STEPS]
    assert names.index("WORKDIR") < names.index("COPY")  # DL3045: what is relative is relative to it
    assert ("RUN", "RUN") not in itertools.pairwise(names)  # DL3059


def test_no_secret_and_no_index_is_written_into_it():
    said = (ROOT / "Dockerfile").read_text()
    assert not re.findall(r"https?://", said)
    assert not any(re.search(r"token|password|secret|key", step, re.IGNORECASE) for step in of("ARG") + of("ENV"))


def test_nothing_is_copied_but_by_copy_and_as_its_owner():
    assert not of("ADD")
    assert all(step.startswith("--chown=") for step in of("COPY"))


@pytest.mark.parametrize("source", sources())
def test_every_source_exists_and_is_not_excluded(source):
    assert (ROOT / source).exists()
    assert source == "." or not excluded(source)


def test_what_the_stages_read_enters_the_image():
    stages = OmegaConf.to_container(OmegaConf.load(ROOT / "dvc.yaml"))["stages"]
    read = {dep for stage in stages.values() for dep in stage.get("do", stage).get("deps", [])} - MADE_INSIDE
    needed = {*read, "dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvcignore", "tests", "Makefile", ".ci"}
    assert "models/tiny" in needed
    assert not {path for path in needed if excluded(path)}


@pytest.mark.parametrize("path", [".venv", ".git", ".dvc/config.local", "hardware.json", "wandb", "results/.locks"])
def test_what_belongs_to_the_machine_outside_stays_there(path):
    assert excluded(path)


def test_a_repository_is_made_where_none_is_copied():
    assert excluded(".git") == any("git init" in step for step in of("RUN"))


def test_packages_are_installed_before_the_sources_are_copied():
    names = [f"{name} {arguments}" for name, arguments in STEPS]
    (everything,) = (n for n, step in enumerate(names) if step.startswith("COPY") and step.endswith(" . ."))
    (install,) = (n for n, step in enumerate(names) if "make .venv/.installed" in step)
    (copied,) = (step for step in names[:install] if step.startswith("COPY"))
    assert {"pyproject.toml", "constraints.txt", "Makefile"} <= set(copied.split())
    assert install < everything


KNOWN_TO_GIT = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
# What the constraints brought into this environment, for a virtual environment that may not fetch anything.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run_as_built(step: str, folder: Path) -> None:
    """By the shell of a build, which knows nothing of the make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "VIRTUAL_ENV"))}
    subprocess.run(["sh", "-ec", step], cwd=folder, env=environment | OFFLINE, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as the build leaves it: every step from the first copy on has run, on a fresh clone's sources.

    The virtual environment is there beforehand, with a path to the packages of this one: only ours is installed.
    """
    folder = tmp_path_factory.mktemp("lab")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (site,) = (folder / ".venv/lib").glob("python3*/site-packages")
    (site / "outside.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    first = next(n for n, (name, _) in enumerate(STEPS) if name == "COPY")
    for name, arguments in STEPS[first:]:
        if name == "COPY":
            for source in arguments.split()[1:-1]:
                copy(source, folder)
        if name == "RUN":
            run_as_built(arguments, folder)
    return folder


def copy(source: str, folder: Path) -> None:
    """What git knows of a source, or of everything, younger than what is there, as a fresh clone is."""
    listed = subprocess.run([*KNOWN_TO_GIT, source], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if not excluded(name) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())


def test_packages_that_were_empty_when_they_were_installed_are_found(built):
    asked = "import pipeline.record, strategies.token.parts; print(pipeline.record.__file__)"
    found = subprocess.run(
        [built / ".venv/bin/python", "-P", "-c", asked], cwd=built.parent, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(built / "pipeline/record.py")


def test_sources_that_are_newer_than_the_packages_install_nothing_again(built):
    """A cached layer is older than a fresh clone: the step after the copy has to renew the stamp."""
    assert subprocess.run(["make", "--question", ".venv/.installed"], cwd=built, check=False).returncode == 0


def test_the_default_command_would_start_in_what_was_built(built):
    """DVC finds a repository, all its stages, and everything that they read."""
    stages = subprocess.run(
        [built / ".venv/bin/python", "-m", "dvc", "stage", "list", "--name-only"],
        cwd=built,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"hardware", "train", "token", "report", "check"} <= set(stages.stdout.split())


@pytest.mark.parametrize("step", of("RUN"), ids=lambda step: step.split()[0])
def test_every_step_is_valid_shell(step):
    done = subprocess.run(["bash", "-n", "-c", step], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_default_command_is_a_target():
    command, target = json.loads(of("CMD")[-1])
    assert command == "make"
    assert subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_what_is_mounted_is_what_the_stages_write():
    (home,) = of("WORKDIR")
    assert json.loads(of("VOLUME")[0]) == [f"{home}/results", f"{home}/reports"]
    assert all(f":{home}/{name}" in (ROOT / "Dockerfile").read_text() for name in ("results", "reports"))
