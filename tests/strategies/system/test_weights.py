"""The laws that every way of holding weights obeys, whatever it holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.memory.costs import weight_bytes
from strategies.system.transform import Transform
from tests.strategies import techniques
from tests.strategies.models import prompt
from tests.strategies.system.weights import FAMILIES, IDS, TRANSFORMS, held, plain
from tests.strategies.test_laws import stream

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
each_family = pytest.mark.parametrize("family", FAMILIES)


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits


@each_transform
@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_what_shapes_foretell_is_what_is_held(family: str, transform: Transform, dtype: torch.dtype) -> None:
    foretold = plain(family, dtype).to("meta")
    foretold.tie_weights()
    transform(foretold, None)
    model = held(family, transform, dtype)
    assert weight_bytes(foretold) == weight_bytes(model)
    logits(model, prompt(1, 5))
    assert weight_bytes(foretold) == weight_bytes(model)


@each_transform
@each_family
def test_a_part_of_the_bytes_is_saved_and_no_table_touched(family: str, transform: Transform) -> None:
    before, after = plain(family), held(family, transform)
    assert weight_bytes(after) < weight_bytes(before)
    tables = [(each.get_input_embeddings().weight, each.get_output_embeddings().weight) for each in (before, after)]
    for expected, got in zip(*tables, strict=True):
        assert torch.equal(expected, got)


@each_transform
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_of_the_model_stays(transform: Transform, dtype: torch.dtype) -> None:
    got = logits(held("gpt2", transform, dtype), prompt(2, 9))
    assert got.dtype == dtype and got.isfinite().all()


@each_transform
def test_the_same_model_gives_the_same_numbers_and_so_does_a_copy(transform: Transform) -> None:
    ids, model = prompt(2, 9), held("llama", transform)
    expected = logits(model, ids)
    assert torch.equal(logits(held("llama", transform), ids), expected)
    assert torch.equal(logits(copy.deepcopy(model), ids), expected)


@each_transform
@each_family
def test_a_batch_is_its_rows(family: str, transform: Transform) -> None:
    ids, model = prompt(4, 9), held(family, transform)
    rows = torch.cat([logits(model, row[None]) for row in ids])
    torch.testing.assert_close(logits(model, ids), rows, rtol=0, atol=0.02 * rows.std().item())


@each_transform
@each_family
def test_generates_and_streams_through_slots_as_without_a_cache(family: str, transform: Transform) -> None:
    ids, model = prompt(2, 24), held(family, transform)
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (2, 28)
    expected = logits(model, ids)
    got = stream(model, techniques.build("full", model), ids, n_prompt=16)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * expected.std().item())


@each_transform
def test_what_is_held_already_is_not_held_again(transform: Transform) -> None:
    model = held("llama", transform)
    with pytest.raises(ValueError, match=r"model=LlamaForCausalLM: no layer with plain weights; valid: "):
        transform(model, IDS if transform.needs_calibration else None)
