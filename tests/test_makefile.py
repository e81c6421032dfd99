"""What `make clean` may take: only what is made again without measuring or training anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline import ROOT

MADE_AGAIN = {".venv/bin/python", ".cache/hydra/log", ".mypy_cache/x", "build/x", "pipeline/__pycache__/run.pyc"}
KEPT = {
    "results/token/full/machine/cell.json",
    "results/.locks/token-full.lock",
    "reports/report.md",
    "reports/figures/ratio.svg",
    "models/tiny/model.safetensors",
    "wandb/offline-run-1/run-1.wandb",
    ".dvc/cache/files/md5/00/1",
    "dvc.lock",
    "pipeline/run.py",
}


def make(target: str, folder: Path) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", "--file", str(ROOT / "Makefile"), target]
    return subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True, check=True).stdout


def test_clean_removes_what_is_made_again_and_nothing_that_was_measured(tmp_path):
    for name in MADE_AGAIN | KEPT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    make("clean", tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == KEPT


def test_help_says_that_clean_keeps_results():
    (line,) = (line for line in make("help", ROOT).splitlines() if line.startswith("clean"))
    assert all(kept in line.partition(";")[2] for kept in ("results", "reports", "models", "stay"))
