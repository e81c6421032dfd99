"""The two sides of a comparison may differ in their weights; plain ones are the reference at the system level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.config import Experiment
from pipeline.fingerprint import baseline_key
from pipeline.levels import sides
from pipeline.levels.measured import Measured
from pipeline.levels.paired import dry_run, measure_cell
from pipeline.variants import weights_variant
from tests.pipeline.small import composed

QUICK = ["workload.seq_len=64", "workload.n_items=4", "workload.tasks=[single_needle]", "profile=smoke"]


class Halved:
    """A transform that is easy to see: matrices of the blocks as float16."""

    needs_calibration = False

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses

    def __call__(self, model: PreTrainedModel, ids: torch.Tensor | None) -> None:
        assert ids is None
        if self.refuses:
            raise ValueError(f"model={type(model).__name__}: {self.refuses}; valid: another")
        for layer in model.model.layers:
            layer.mlp = HalvedMLP(layer.mlp)


class HalvedMLP(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x.half()).to(x.dtype)


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    sides._loaded.clear()
    yield
    sides._loaded.clear()


def experiment(*overrides: str, refuses: str = "") -> Experiment:
    asked = Experiment.from_hydra(composed("level=system", *overrides))
    target = {"_target_": f"{__name__}.Halved", "refuses": refuses}
    weights = asked.weights.model_copy(update={"transforms": {"halved": target}})
    return asked.model_copy(update={"weights": weights})


def measured(asked: Experiment) -> Measured:
    return measure_cell(asked.cells()[0].model_copy(update={"weights": "halved"}), asked)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.weights_variant", lambda name, transforms: name)


@pytest.mark.usefixtures("published")
def test_weights_are_measured_beside_plain_ones() -> None:
    asked = experiment("workload=weights_cost", "model=tiny", "workload.seq_len=64", "profile=smoke")
    found = measured(asked)
    assert found.cost is not None
    own, plain = found.cost.technique.weight_bytes, found.cost.full.weight_bytes
    mlp = 4 * 3 * 64 * 160  # layers, matrices, numbers
    assert sum(plain.values()) - sum(own.values()) == 2 * mlp
    assert sum(own.values()) == found.predicted.weight_bytes
    assert len(sides._loaded) == 2


@pytest.mark.usefixtures("published")
def test_quality_is_that_of_the_transformed_model_and_asked_only_where_it_can_differ() -> None:
    found = measured(experiment("workload=weights_quality", *QUICK)).quality
    assert found is not None and found.text is not None
    (task,) = found.tasks
    assert task.protocol == "query_agnostic"
    assert 0 < abs(found.text.nll - found.text.nll_full) < 0.01


@pytest.mark.usefixtures("published")
def test_what_a_transform_refuses_is_refused_before_any_work() -> None:
    asked = experiment("workload=weights_quality", *QUICK, refuses="no such layer")
    with pytest.raises(ValueError, match="model=LlamaForCausalLM: no such layer; valid: another"):
        dry_run(asked)
    assert not sides._loaded


@pytest.mark.usefixtures("published")
def test_what_plain_weights_said_is_remembered_for_all_others() -> None:
    halved, plain = (
        experiment("workload=weights_quality"),
        Experiment.from_hydra(composed("level=system", "workload=weights_quality")),
    )
    cell = plain.cells()[0]
    assert baseline_key(halved.resolved, cell, {}) == baseline_key(plain.resolved, cell, {})
    at_token_level = halved.resolved | {"level": plain.resolved["level"] | {"reference_weights": None}}
    assert baseline_key(at_token_level, cell, {}) != baseline_key(plain.resolved, cell, {})


def test_other_transforms_are_no_variant_of_a_point() -> None:
    assert weights_variant("none", {}) == "none"
    smoothed = {"smooth": {"_target_": "strategies.system.smoothquant.Smooth", "alpha": 0.5}}
    product = {"_target_": "strategies.system.w8a8.W8A8", "weights": "per_channel", "activations": "per_token"}
    assert weights_variant("smoothquant", smoothed | {"w8a8": product}) == "smoothquant+smooth.alpha=0.5"
    with pytest.raises(ValueError, match="not those of weights=smoothquant"):
        weights_variant("smoothquant", {"w8a8": product} | smoothed)  # the order is part of a point
    with pytest.raises(ValueError, match=r"weights.transforms=.*: not those of weights=none; valid: "):
        weights_variant("none", {"y": {"_target_": "x.Y"}})
