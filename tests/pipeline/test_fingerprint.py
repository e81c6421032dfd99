"""The fingerprint follows everything that changes a number, and nothing else."""

from __future__ import annotations

import shutil

import pytest

from pipeline import ROOT, fingerprint
from tests.conftest import SMALL

HARDWARE = {"cpu": "Z80"}


@pytest.fixture
def of(experiment):
    def build(*overrides: str, root=ROOT, hardware=HARDWARE) -> str:
        this = experiment(*SMALL, "strategy=sliding_window", "workload.seq_len=64", *overrides)
        return fingerprint.fingerprint(this.resolved, this.cells()[0], hardware, root)

    return build


@pytest.fixture
def copied(tmp_path):
    for name in fingerprint.FIRST_PARTY:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "dtype=float64",
        "strategy.kv_budget=40",
        "strategy.keep_ratio=0.5",
        "profile.n_bootstrap=7",
        "profile.n_threads=7",
        "model.config.rope_parameters=null",
    ],
)
def test_another_configuration_is_another_measurement(of, change):
    assert of(change) != of()


@pytest.mark.parametrize(
    "change",
    [
        "tracking=offline",
        "results_dir=elsewhere",
        "prune=true",
        "device=cpu",
        "model.title=Another",
        "strategy.summary=Another",
        "strategy.paper=Another",
        "baseline.title=Another",
        "profile.name=another",
        "profile.quality_seq_len=[128]",
        "strategy.kv_budget=16",  # which is what the ratio gives
    ],
)
def test_names_stories_and_where_results_go_are_no_part_of_it(of, change):
    assert of(change) == of()


def test_other_cells_of_the_grid_are_no_part_of_it(of):
    assert of("workload.seq_len=[64,128]", "workload.batch=[1,2]") == of()


def test_another_machine_or_version_is_another_measurement(of, monkeypatch):
    before = of()
    assert of(hardware={"cpu": "6502"}) != before
    monkeypatch.setattr(fingerprint, "versions", lambda: {"torch": "0.1"})
    assert of() != before


def test_the_cores_that_may_be_used_count_where_the_profile_takes_them_all(of, monkeypatch):
    before = of()
    monkeypatch.setattr(fingerprint, "n_usable_cores", lambda: 99)
    assert of() != before
    assert of("profile.n_threads=99") == of()


def test_code_that_is_used_counts_and_its_comments_do_not(of, copied):
    before, used = of(root=copied), copied / "strategies/token/recency.py"
    source = used.read_text()
    used.write_text(f"# a comment\n{source}")
    assert of(root=copied) == before
    used.write_text(f"{source}\nNEW = 1\n")
    assert of(root=copied) != before


def test_code_that_is_not_used_does_not_count(of, copied):
    before = of(root=copied)
    (copied / "strategies/token/sinks.py").write_text("NEW = 1\n")
    (copied / "pipeline/report/render.py").write_text("NEW = 1\n")
    assert of(root=copied) == before


def test_weights_configuration_and_tokenizer_count_and_how_they_were_trained_does_not(
    experiment, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "trained"
    folder.mkdir()
    weights, others = b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0{}  "  # two ways to hold nothing
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("one")
    this = experiment("model=tiny", "model.path='~/trained'", "workload=cost", "workload.seq_len=64")
    seen = {fingerprint.fingerprint(this.resolved, this.cells()[0], HARDWARE)}
    for name in ("training.json", "README.md", "model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_bytes(others)
        seen.add(fingerprint.fingerprint(this.resolved, this.cells()[0], HARDWARE))
    assert len(seen) == 1 + 3


def test_imports_inside_functions_are_followed_and_those_for_types_are_not(tmp_path):
    package = tmp_path / "pipeline"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from pipeline import typed\n"
        "def f():\n    from pipeline.b import g\n"
    )
    (package / "b.py").write_text("from . import c\n")
    for name in ("c", "typed"):
        (package / f"{name}.py").write_text("")
    assert set(fingerprint.import_closure(["pipeline.a.f"], tmp_path)) == {"pipeline.a", "pipeline.b", "pipeline.c"}


def test_another_version_of_an_engine_is_another_measurement_of_that_engine_alone(experiment, monkeypatch):
    def of(engine: str) -> str:
        this = experiment("workload=throughput", f"engine={engine}")
        return fingerprint.fingerprint(this.resolved, this.cells()[0], HARDWARE)

    names = ("vllm", "vllm_prefix", "hf_batch", "ours")
    seen = []
    for version in ("vllm-0.32.0", "vllm-0.33.0"):
        monkeypatch.setattr(fingerprint, "engines", lambda version=version: {"vllm": version})
        seen.append({name: of(name) for name in names})
    assert [name for name in names if seen[0][name] != seen[1][name]] == ["vllm", "vllm_prefix"]
