"""What wandb's own reader finds in a run folder: every line of the run file, and what they add up to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WANDB = str(Path(sys.executable).with_name("wandb"))
OF_WANDB = ("_runtime", "_step", "_timestamp")


@dataclass(frozen=True)
class RunFile:
    run: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    metrics: dict[str, dict[str, Any]]  # by name, or by the pattern of names
    artifacts: dict[str, dict[str, bytes]]  # kind -> file name -> content
    exit_code: int


def read(folder: Path) -> RunFile:
    lines = [json.loads(line) for line in _inspect(folder).splitlines()]
    of = {kind: [line[kind] for line in lines if line["type"] == kind] for kind in {line["type"] for line in lines}}
    ended = json.loads(_inspect(folder, "--summary"))
    return RunFile(
        run=of["run"][0],
        config=ended["config"],
        history=[without_wandb(line["item"]) for line in of["history"]],
        summary=without_wandb(ended["summary"]),
        metrics={line.get("name") or line["glob_name"]: line for line in of["metric"]},
        artifacts={line["type"]: _files(line) for line in of.get("artifact", [])},
        exit_code=of["exit"][0]["exit_code"],
    )


def without_wandb(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (*OF_WANDB, "_wandb")}


def _files(artifact: dict[str, Any]) -> dict[str, bytes]:
    return {entry["path"]: Path(entry["local_path"]).read_bytes() for entry in artifact["manifest"]["contents"]}


def _inspect(folder: Path, *options: str) -> str:
    asked = [WANDB, "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
