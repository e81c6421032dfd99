"""The stages: what they depend on covers the code they run, and nothing to do is done fast."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks import layout
from pipeline import ROOT, checkpoints, sweep
from pipeline.fingerprint import BY_VALUE, import_closure
from pipeline.refusals import CONF

STAGES: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "dvc.yaml"))["stages"]
STRATEGIES = list(OmegaConf.load(ROOT / "params.yaml").strategies)
# How an error is said or a table is shown changes no result; `pipeline` itself holds ROOT alone.
SHOWN = ["pipeline", "pipeline.run", "pipeline.sweep", "pipeline.refusals"]
SEEN = ("pipeline.tracking", "pipeline.console")  # how a run is followed changes no result, nor what serves only that
# What has no part in the weights or the numbers, nor what only these import.
NO_PART = {"layout": layout.NO_PART} | dict.fromkeys(
    ("train", "architectures", "uptraining"),
    # Saying errors, hashing, loading, judging and following have no part in the weights.
    (
        *checkpoints.NO_PART[1:],
        *(f"pipeline.{name}" for name in ("refusals", "fingerprint", "models", "gates", "judgement", "tracking")),
    ),
)
NOT_A_REASON = {
    "token": SHOWN,
    "model": SHOWN,
    "system": SHOWN,
    "engine": SHOWN,
    "ablation": SHOWN,
    "benchmark": SHOWN,
    "memory": ["pipeline.refusals"],
    "serving": ["pipeline.refusals", "pipeline.findings.quantities"],
    "report": ["pipeline.refusals"],
    "gates": [
        "pipeline.refusals",
        "pipeline.bars",
        "pipeline.plans",
        "pipeline.intervals",
    ],  # bars judge records, not the model
}
ENTRY = {
    "train": ["pipeline.train"],
    "architectures": ["pipeline.train", "strategies.model.sparse"],
    "uptraining": ["pipeline.train"],
    "model": ["pipeline.run", "pipeline.levels.paired", "strategies.model.native", "strategies.model.sparse"],
    "token": ["pipeline.run", "pipeline.levels.paired", "strategies.cache"],
    "system": ["pipeline.run", "pipeline.levels.paired", "strategies.cache", "strategies.system.w8a8"],
    "engine": [
        "pipeline.engines.__main__",
        "pipeline.levels.engine",
        "pipeline.engines.ours",
        "strategies.cache",
        "pipeline.engines.hf_continuous",
    ],
    "serving": ["pipeline.serving.__main__", "strategies.system.blocks", "strategies.cache"],
    "ablation": ["pipeline.ablations", "pipeline.levels.paired", "strategies.cache"],
    "benchmark": ["benchmarks.token_level", "strategies.cache"],
    "layout": ["benchmarks.layout"],
    "memory": ["pipeline.memory.tables", "strategies.cache"],
    "gates": ["pipeline.gates", "strategies.cache"],
    "report": ["pipeline.report.__main__"],
}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    environment |= {"DVC_SITE_CACHE_DIR": str(folder / ".site"), "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(["dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_strategy_of_ours_is_measured_and_judged_and_those_of_other_packages_are_run_by_hand():
    files = (CONF / "strategy").glob("*.yaml")
    ours = sorted(file.stem for file in files if "- cache: slots\n" in file.read_text())
    assert sorted(STRATEGIES) == ours
    command = shlex.split(STAGES["token"]["cmd"])
    jobs = sweep.experiments(command[command.index("--multirun") + 1 :])
    assert sorted((job.strategy.name, job.workload.name) for job in jobs) == [
        (name, load) for name in ours for load in ("cost", "quality")
    ]


@pytest.mark.parametrize("stage", ENTRY)
def test_dependencies_cover_the_imported_code(stage):
    deps = [ROOT / path for path in STAGES[stage]["deps"]]
    holds_configuration = stage in ("token", "model", "system", "engine", "ablation", "benchmark")  # in its records
    leave_out = (*SEEN, *(() if holds_configuration else BY_VALUE), *NO_PART.get(stage, ()))
    for module, path in import_closure(ENTRY[stage], leave_out=leave_out).items():
        covered = any(path == dep or path.is_relative_to(dep) for dep in deps)
        assert covered or module in NOT_A_REASON.get(stage, []), f"{stage} depends on {module}"


def test_every_dependency_exists_or_is_made():
    made = {out if isinstance(out, str) else next(iter(out)) for s in STAGES.values() for out in s.get("outs", [])}
    for name, stage in STAGES.items():
        for dep in stage.get("deps", []):
            path = ROOT / dep
            assert path.exists() or dep in made or str(Path(dep).parent) in made, f"{name}: {dep}"


def test_records_survive_an_interrupted_stage():
    for name in (
        "hardware",
        "train",
        "architectures",
        "uptraining",
        "token",
        "model",
        "system",
        "engine",
        "ablation",
        "benchmark",
        "layout",
    ):
        for out in STAGES[name]["outs"]:
            assert next(iter(out.values())) == {"cache": False, "persist": True}, name


@pytest.fixture
def clone(tmp_path):
    """The project's stages with commands that only touch what they make; no remote, no git identity."""
    for name in (".dvc/config", ".dvcignore", "dvc.yaml", "params.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in fingerprinted_folders():
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = OmegaConf.load(tmp_path / "dvc.yaml")
    for stage in stages.stages.values():
        outs = [next(iter(out)) for kind in ("outs", "metrics") for out in stage.get(kind, [])]
        stage.cmd = "true " + " ".join(f"&& mkdir -p $(dirname {out}) && echo 1 > {out}" for out in outs)
    OmegaConf.save(stages, tmp_path / "dvc.yaml")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def fingerprinted_folders() -> list[str]:
    return ["conf", "pipeline", "strategies", "benchmarks"]


@pytest.mark.slow
def test_nothing_to_do_is_done_in_under_five_seconds(clone):
    first = dvc(clone, "repro")
    assert first.returncode == 0, first.stderr + first.stdout
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = dvc(clone, "repro")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert second.returncode == 0
    ran = [line for line in second.stdout.splitlines() if line.startswith("Running stage")]
    assert ran == ["Running stage 'hardware':"]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_make_lists_its_targets():
    asked = ["make", "--no-print-directory", "help"]  # these tests themselves run under make
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == {
        "help",
        "install",
        "vllm",
        "repro",
        "benchmark",
        "study",
        "test",
        "lint",
        "report",
        "dashboard",
        "clean",
    }
