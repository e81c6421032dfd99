"""What techniques keep of a sequence is what the memory calculator says at other lengths."""

from __future__ import annotations

import pytest

from pipeline.memory.question import asked
from pipeline.memory.tables import answers_by_one_layer
from pipeline.serving import plan
from pipeline.serving.results import Size
from pipeline.serving.sizes import sizes
from tests.pipeline.serving.plans import small

pytestmark = pytest.mark.slow
PER_TOKEN = 2**17  # of Llama 3.1 8B in 16 bits
NAMES = ("full", "kv_int8", "kv_int4", "kivi", "minicache", "h2o", "h2o_int4", "snapkv", "pyramidkv", "offload",
         "no_cache", "hf_dynamic")  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Size | str]:
    return sizes(plan.asked([])[0], NAMES)


def sized(found: dict[str, Size | str], name: str) -> Size:
    size = found[name]
    assert isinstance(size, Size), size
    return size


def test_slots_are_as_large_as_a_kept_token(found: dict[str, Size | str]) -> None:
    n_scales = 2 * 8 * 32  # a scale of 32 bits for each key and value of a head
    assert sized(found, "full").slot_bytes == PER_TOKEN
    assert sized(found, "kv_int8").slot_bytes == PER_TOKEN / 2 + 4 * n_scales
    assert sized(found, "kv_int4").slot_bytes == sized(found, "h2o_int4").slot_bytes == PER_TOKEN / 4 + 4 * n_scales
    assert sized(found, "minicache").slot_bytes == pytest.approx(0.78 * PER_TOKEN, rel=0.01)


@pytest.mark.parametrize("name", ["kivi", "h2o_int4", "snapkv"])
def test_a_line_through_two_lengths_says_what_the_calculator_does(found: dict[str, Size | str], name: str) -> None:
    """Which counts every length itself; KIVI's newest tokens fill up and are quantised, which the line goes through."""
    size = sized(found, name)
    lengths = (200, 700, 1900)
    answers = answers_by_one_layer(asked([f"strategy={name}", f"seq_len={list(lengths)}"]))
    for n_prompt, answer in zip(lengths, answers, strict=True):
        assert size.slot_bytes * size.n_slots(n_prompt, 0) == pytest.approx(answer.one.kept, rel=0.05)


def test_evicting_in_every_step_never_grows(found: dict[str, Size | str]) -> None:
    grows = {name: sized(found, name).grows for name in ("full", "kivi", "pyramidkv", "snapkv", "h2o", "h2o_int4")}
    assert [name for name, growing in grows.items() if not growing] == ["h2o", "h2o_int4"]
    assert sized(found, "pyramidkv").n_slots(400, 10) == 100 + 10
    assert sized(found, "h2o").n_slots(400, 10) == 100


def test_what_has_no_size_says_why(found: dict[str, Size | str]) -> None:
    assert "on the host" in str(found["offload"])
    assert "holds nothing" in str(found["no_cache"])
    assert "hf_dynamic" not in found  # of another package: no technique of its own


def test_a_technique_that_cannot_hold_the_model_says_why() -> None:
    refused = sizes(small("model=deepseek_v2"), ["kv_int8"])["kv_int8"]
    assert isinstance(refused, str) and "keys of 192" in refused
