"""Every engine of this process says the tokens of `generate`, one request after another, and says when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engines.hf_batch import HFBatch
from pipeline.engines.hf_continuous import HFContinuous, most_pages
from pipeline.engines.hf_generate import HFGenerate
from pipeline.engines.ours import Ours
from pipeline.engines.serving import Engine, Loaded, Request
from tests.pipeline.engines import small

OURS = ["full", "no_cache", "paged"]
ENGINES = ["hf_batch", "hf_continuous", *OURS]


def engine(name: str, of: Loaded) -> Engine:
    if name == "hf_batch":
        return HFBatch(of)
    if name == "hf_continuous":
        return HFContinuous(of, page_size=32, max_batch_tokens=64)
    return Ours(of)


@pytest.fixture(params=[small.gpt2, small.llama], ids=["gpt2", "llama"])
def model(request):
    return request.param()


@pytest.mark.parametrize("asked", [small.ALIKE, small.MIXED], ids=["alike", "mixed"])
@pytest.mark.parametrize("name", ENGINES)
def test_greedy_tokens_are_those_of_generate_one_by_one(name: str, asked: list[Request], model, tmp_path: Path) -> None:
    of = small.loaded(model, tmp_path, strategy=name if name in OURS else "full")
    expected, served = HFGenerate(of).serve(asked), engine(name, of).serve(asked)
    assert served.tokens == expected.tokens
    assert [len(row) for row in served.tokens] == [one.n_new_tokens for one in asked]
    for times, one in zip(served.token_s, asked, strict=True):
        assert len(times) == one.n_new_tokens and times == sorted(times) and times[0] > 0


def test_one_by_one_waits_for_its_turn_and_one_batch_does_not(tmp_path: Path) -> None:
    of = small.loaded(small.gpt2(), tmp_path)
    one_by_one, batch = HFGenerate(of).serve(small.ALIKE), HFBatch(of).serve(small.ALIKE)
    ends, starts = [times[-1] for times in one_by_one.token_s], [times[0] for times in one_by_one.token_s]
    assert all(start > end for start, end in zip(starts[1:], ends[:-1], strict=True))
    assert len({times[0] for times in batch.token_s}) == 1


@pytest.mark.parametrize("name", ["hf_generate", *ENGINES])
def test_nothing_is_said_before_its_request_has_arrived(name: str, tmp_path: Path) -> None:
    of = small.loaded(small.gpt2(), tmp_path, strategy=name if name in OURS else "full")
    served = (HFGenerate(of) if name == "hf_generate" else engine(name, of)).serve(small.ARRIVING)
    firsts = [times[0] for times in served.token_s]
    assert all(first > one.arrival_s for first, one in zip(firsts, small.ARRIVING, strict=True))
    if name == "hf_batch":  # which waits for the last
        assert min(firsts) > small.ARRIVING[-1].arrival_s
    assert served.tokens == HFBatch(of).serve([replace(one, arrival_s=0.0) for one in small.ARRIVING]).tokens


def test_bytes_are_those_of_the_tokens_that_were_held(tmp_path: Path) -> None:
    """A batch holds padding too; a request alone holds what it saw, of which the last token is not."""
    of = small.loaded(small.gpt2(), tmp_path)
    per_token = 2 * 2 * 64 * 4  # keys and values, layers, width, float32
    assert HFGenerate(of).serve(small.MIXED).kv_bytes_used == per_token * (40 + 3 - 1)
    assert HFBatch(of).serve(small.MIXED).kv_bytes_used == 4 * per_token * (40 + 14 - 1)
    ours = Ours(of).serve(small.ALIKE)
    assert 4 * per_token * (24 + 12 - 1) <= ours.kv_bytes_used <= ours.kv_bytes_allocated


def test_pages_are_counted_where_most_requests_overlap() -> None:
    asked = [Request([0] * 5, 3), Request([0] * 4, 2), Request([0] * 4, 2, arrival_s=9.0)]
    overlapping = [[1.0, 2.0, 3.0], [2.5, 3.0], [9.5, 9.9]]  # pages of 4: 2, 2, 2 and 1, 2, of which the third reuses
    assert most_pages(asked, overlapping, page_size=4) == 2 + 2
    apart = [[1.0, 2.0, 3.0], [4.0, 5.0], [9.5, 9.9]]
    assert most_pages(asked, apart, page_size=4) == 2


def test_the_attention_of_the_model_comes_back_after_continuous_batching(tmp_path: Path) -> None:
    of = small.loaded(small.gpt2(), tmp_path)
    before = of.model.config._attn_implementation
    engine("hf_continuous", of).serve(small.ALIKE)
    assert of.model.config._attn_implementation == before
