"""What tests share: composing a configuration, and running the command line in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pipeline.config import Experiment
from pipeline.refusals import CONF

# Kernels for a GPU run by Triton's interpreter where there is none; it has to know before anybody imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A Llama that runs in milliseconds, and a measuring function that runs in none.
SMALL = (
    "model=bench",
    "workload=cost",
    "profile=smoke",
    "tracking=disabled",
    "model.config.vocab_size=64",
    "model.config.hidden_size=32",
    "model.config.intermediate_size=64",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "model.config.num_key_value_heads=1",
    "model.config.head_dim=16",
)
CELLS = "level.measure._target_=tests.pipeline.cells"
INSTANT = (*SMALL, f"{CELLS}.instant")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    def build(*overrides: str) -> Experiment:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return Experiment.from_hydra(compose("config", list(overrides)))

    return build


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`python -m pipeline.run ARGUMENTS` in this process, with its results under `tmp_path / "results"`."""
    from pipeline import run

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # so that what run.main sets is taken back

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["run", *arguments, f"results_dir={tmp_path / 'results'}"])
        code = 0
        try:
            run.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call
