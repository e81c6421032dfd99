import copy

import pytest
import torch
from torch.testing import assert_close

from pipeline.decoding import Decoder
from tests.pipeline.small import arm, model, tokens


def test_recomputing_everything_equals_the_full_cache() -> None:
    ids = tokens(2, 40)
    with arm("full")(20) as cached:
        expected = [cached.feed(ids[:, :20])] + [cached.feed(ids[:, i : i + 1]) for i in range(20, 40)]
    with arm("no_cache")(20) as recomputed:
        found = [recomputed.feed(ids[:, :20])] + [recomputed.feed(ids[:, i : i + 1]) for i in range(20, 40)]
    assert recomputed.cache is None
    assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("strategy", ["full", "no_cache"])
def test_teacher_forcing_equals_feeding_one_by_one(strategy: str) -> None:
    prompt, following = tokens(2, 30).split([22, 8], dim=1)
    with arm(strategy)(8) as decoder:
        decoder.feed(prompt)
        at_once = decoder.teacher_force(following)
    with arm(strategy)(8) as decoder:
        decoder.feed(prompt)
        one_by_one = torch.stack([decoder.feed(following[:, i : i + 1]) for i in range(8)], dim=1)
    assert_close(at_once, one_by_one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("strategy", ["full", "no_cache"])
def test_all_logits_end_with_the_last_ones(strategy: str) -> None:
    ids = tokens(2, 12)
    with arm(strategy)(1) as decoder:
        every = decoder.feed(ids, all_logits=True)
    with arm(strategy)(1) as decoder:
        last = decoder.feed(ids)
    assert every.shape[:2] == ids.shape
    assert_close(every[:, -1], last, rtol=0, atol=1e-9)


def test_model_is_given_back_after_an_exception() -> None:
    before = model().config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), arm("full")(4) as decoder:
        assert model().config._attn_implementation != before
        decoder.feed(tokens(1, 8))
        raise RuntimeError("stop")
    assert model().config._attn_implementation == before


def test_sequences_continue_when_entered_again_between_others() -> None:
    ids = tokens(1, 16)
    with arm("full")(8) as undisturbed:
        expected = undisturbed.feed(ids)
    first, other = arm("full")(8), arm("full")(8)
    with first as decoder:
        decoder.feed(ids[:, :10])
    with other as decoder:
        decoder.feed(tokens(1, 10, seed=1))
    with first as decoder:
        assert_close(decoder.feed(ids[:, 10:]), expected, rtol=0, atol=1e-9)


def test_copy_of_a_cache_continues_on_its_own() -> None:
    prompt, following = tokens(1, 20).split([16, 4], dim=1)
    with arm("sliding_window", kv_budget=8)(4) as original:
        original.feed(prompt)
        twin = Decoder(model(), copy.deepcopy(original.cache))
        expected = original.teacher_force(following)
    with twin:
        assert twin.n_seen == 16
        assert torch.equal(twin.teacher_force(following), expected)


def test_logits_of_a_half_precision_model_are_float32() -> None:
    with arm("full", of=copy.deepcopy(model()).to(torch.bfloat16))(4) as decoder:
        assert decoder.feed(tokens(1, 8)).dtype == torch.float32
