"""Dependencies point one way: tests → pipeline → conf → strategies → torch, transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.fingerprint import import_closure, imported_names

PIPELINE, STRATEGIES = (sorted((ROOT / name).rglob("*.py")) for name in ("pipeline", "strategies"))


def packages(path: Path) -> set[str]:
    """Top-level names a file imports, anywhere in it and also for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", STRATEGIES, ids=name_of)
def test_techniques_know_nothing_of_the_experiments(path):
    assert not packages(path) & {"pipeline", "tests", "hydra", "omegaconf", "wandb", "dvc", "pydantic"}


@pytest.mark.parametrize("path", PIPELINE, ids=name_of)
def test_experiments_reach_techniques_only_through_conf(path):
    calibrates = path.name == "calibration.py"  # a model, before there is a technique to be reached through conf
    assert not packages(path) & {"tests", "dvc", *(() if calibrates else ("strategies",))}


@pytest.mark.parametrize("path", PIPELINE, ids=name_of)
def test_only_tracking_imports_wandb(path):
    assert "wandb" not in packages(path) or path.name == "tracking.py"


def test_report_needs_no_torch():
    modules = import_closure(["pipeline.report.__main__"])
    assert "pipeline.report.render" in modules
    for path in modules.values():
        assert not packages(path) & {"torch", "transformers"}, path


@pytest.mark.parametrize(("package", "above"), [("findings", ("advise", "report")), ("advise", ("report",))])
def test_what_records_say_depends_on_nobody_who_shows_it(package, above):
    for path in (ROOT / "pipeline" / package).glob("*.py"):
        for name in imported_names(path, f"pipeline.{package}.{path.stem}"):
            assert not name.startswith(tuple(f"pipeline.{other}" for other in above)), f"{path.name} imports {name}"


@pytest.mark.parametrize("module", ["run", "grid", "console", "hardware", "tracking", "record", "report.render"])
def test_starting_up_imports_nothing_heavy(module):
    code = (
        f"import sys, pipeline.{module}\n"
        "sys.exit(', '.join({'torch', 'transformers', 'wandb', 'dvc', 'strategies'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
