"""Architectures beside the reference, which is another model with its own cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import ROOT, checkpoints, fingerprint, models
from pipeline.config import Experiment
from pipeline.levels.measured import Measured
from pipeline.levels.paired import dry_run, measure_cell
from pipeline.memory.costs import kv_bytes_per_token
from tests.pipeline.small import composed

QUICK = ["workload.seq_len=256", "workload.tasks=[single_needle]", "workload.n_items=8"]


def experiment(*overrides: str) -> Experiment:
    return Experiment.from_hydra(composed(*overrides))


def measured(*overrides: str) -> Measured:
    asked = experiment(*overrides)
    return measure_cell(asked.cells()[0], asked)


def test_the_reference_is_another_model_with_its_own_cache() -> None:
    found = measured("model=gqa", "workload=growing", "workload.seq_len=256")
    assert found.cost is not None
    held, of_reference = found.cost.technique.kv_bytes_held[0], found.cost.full.kv_bytes_held[0]
    assert held == pytest.approx(of_reference / 2, rel=0.02)  # positions are counted too
    loaded = models.load(experiment("model=gqa", "workload=growing").model, "float32", "cpu", 0).model
    assert found.predicted.kv_bytes_per_token == kv_bytes_per_token(loaded.config, torch.float32) == 4 * 2 * 2 * 32 * 4
    assert found.predicted.weight_bytes == 4 * sum(weight.numel() for weight in loaded.parameters())


def test_each_arm_answers_with_its_own_weights_and_nothing_is_asked_before_an_eviction_that_never_comes() -> None:
    found = measured("model=sliding", "workload=architecture", *QUICK).quality
    assert found is not None
    (task,) = found.tasks
    assert task.protocol == "query_agnostic" and task.top1_agreement < 1
    same = measured("model=mha", "workload=architecture", *QUICK).quality
    assert same is not None and found.text is not None and same.text is not None
    assert {one.protocol for one in same.tasks} >= {"query_agnostic"}
    assert same.text.nll_full == same.text.nll == found.text.nll_full != found.text.nll


def test_an_architecture_without_trained_weights_is_a_skipped_row_that_says_why(tmp_path: Path) -> None:
    asked = ["model=mha", "model.source=random", "workload=architecture", *QUICK]
    assert measured(*asked, "model.path=null").skipped == "never trained"
    (tmp_path / checkpoints.STORY).write_text(json.dumps({"reason": "too slow"}))
    found = measured(*asked, f"model.path={tmp_path}")
    assert found.skipped == f"{checkpoints.NOT_TRAINED}: too slow" and found.quality is None
    assert "pipeline.train recipe=architecture model=mha" in found.remedy


def test_models_of_other_words_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"model=bench: knows \d+ words, level.reference=mha 1282; valid: "):
        dry_run(experiment("model=bench", "workload=growing"))


def test_the_weights_of_the_reference_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    """One byte more, in a folder whose path the record holds either way."""
    folder = Path(shutil.copytree(ROOT / "models/mha", tmp_path / "mha"))
    asked = experiment("model=gqa", "workload=growing").resolved
    reference = asked["level"]["reference"] | {"path": str(folder)}
    resolved = asked | {"level": asked["level"] | {"reference": reference}}
    seen = set()
    for _ in range(2):
        seen.add(fingerprint.fingerprint(resolved, experiment("model=gqa", "workload=growing").cells()[0], {}))
        with (folder / models.WEIGHTS).open("ab") as file:
            file.write(b" ")
    assert len(seen) == 2
