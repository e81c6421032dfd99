"""Laws of the models without attention, whose state is as large after one token as after thousands."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, xLSTMConfig

from pipeline.decoding import Decoder
from pipeline.library import build_cache as by_name
from pipeline.memory.costs import Footprint, footprint, kv_bytes_per_token
from strategies.model.native import build_cache
from tests.strategies.model.test_native import WITHOUT_ATTENTION, greedy, prompt
from tests.strategies.model.test_native import model_of as drawn

FLOAT32, FLOAT64 = 4, 8
BYTES = {  # of one row: each layer's state and the last inputs of its convolution, or of its mixing
    "mamba": 4 * (256 * 16 + 256 * 4) * FLOAT64,
    "mamba2": 4 * (8 * 32 * 64 * FLOAT32 + (256 + 2 * 64) * 4 * FLOAT64),
    "rwkv": 4 * 64 * (2 * FLOAT64 + 3 * FLOAT32),
}  # Transformers keeps the last two kinds of state in float32, whatever the model's numbers
TOLERANCE = 1e-3  # of logits that spread by 1.6 to 5, since norms and states are float32


def model_of(name: str) -> PreTrainedModel:
    """RWKV draws its numbers itself, and no initialisation of the configuration reaches it."""
    model = drawn(name)
    if name == "rwkv":
        for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            matrix.data *= 10
    return model


def decoder_of(model: PreTrainedModel) -> Decoder:
    return Decoder(model, build_cache(model, kv_budget=None))


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_cached_greedy_decoding_is_uncached(name):
    """Given what was said, each word is the first choice without a cache, too; and it depends on what came before."""
    model, ids = model_of(name), prompt(199)
    said = greedy(decoder_of(model), ids, 64)
    assert len(said.unique()) > 16
    uncached = Decoder(model, None).feed(torch.cat([ids, said], dim=1), all_logits=True)
    assert torch.equal(said, uncached[:, ids.shape[1] - 1 : -1].argmax(-1))
    assert not torch.equal(said, greedy(decoder_of(model), ids[:, -1:], 64))


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
@pytest.mark.parametrize("cut", [1, 2, 40])
def test_several_tokens_that_follow_others_continue_their_state(name, cut):
    model, ids = model_of(name), prompt(70, batch=2)
    with decoder_of(model) as decoder:
        first, rest = (decoder.feed(part, all_logits=True) for part in ids.tensor_split([cut], dim=1))
        assert decoder.cache.get_seq_length() == 70
    expected = Decoder(model, None).feed(ids, all_logits=True)
    assert (torch.cat([first, rest], dim=1) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_four_rows_are_four_batches_of_one(name):
    model, ids = model_of(name), prompt(100, batch=4)
    together = greedy(decoder_of(model), ids, 8)
    assert torch.equal(together, torch.cat([greedy(decoder_of(model), row, 8) for row in ids.split(1)]))


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_bytes_are_the_formulas_and_the_same_at_any_length(name):
    model = model_of(name)
    for n_tokens in (1, 64, 2048):
        with decoder_of(model) as decoder:
            assert decoder.kv_bytes_held == 0
            decoder.feed(prompt(n_tokens, batch=2))
            assert decoder.kv_bytes_held == decoder.kv_bytes_logical == 2 * BYTES[name]
            decoder.feed(prompt(1, batch=2))
            assert decoder.kv_bytes_held == 2 * BYTES[name]


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_bytes_are_known_without_weights_or_numbers(name):
    model = model_of(name).to("meta")
    expected = 3 * BYTES[name]
    found = footprint(lambda headroom: decoder_of(model), seq_len=8192, batch=3, n_new_tokens=8)
    assert found == Footprint(logical=expected, held=expected)
    assert kv_bytes_per_token(model.config, model.dtype) == 0


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_after_a_reset_it_is_as_new_even_for_another_batch(name):
    model, ids = model_of(name), prompt(30)
    cache = build_cache(model, kv_budget=None)
    greedy(Decoder(model, cache), prompt(50, batch=4), 4)
    cache.reset()
    assert (cache.get_seq_length(), cache.bytes_held) == (0, 0)
    assert torch.equal(greedy(Decoder(model, cache), ids, 8), greedy(decoder_of(model), ids, 8))


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_reordered_rows_go_on_as_those_they_were(name):
    model, ids, order = model_of(name), prompt(30, batch=3), torch.tensor([2, 0, 0])
    with decoder_of(model) as decoder, decoder_of(model) as straight:
        decoder.feed(ids)
        straight.feed(ids[order])
        decoder.cache.reorder_cache(order)
        for token in prompt(4, batch=3).split(1, dim=1):
            assert (decoder.feed(token) - straight.feed(token)).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_the_model_is_given_back(name):
    model = model_of(name)
    with decoder_of(model) as outer:
        with decoder_of(model) as inner:
            inner.feed(prompt(5))
            assert (inner.cache.get_seq_length(), outer.cache.get_seq_length()) == (5, 0)
        outer.feed(prompt(6))
        assert (inner.cache.get_seq_length(), outer.cache.get_seq_length()) == (5, 6)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_a_cache_of_tokens_is_refused(name):
    model = model_of(name)
    with pytest.raises(ValueError, match=r"model=\w+: it has no attention, .*valid: strategy=native"):
        by_name("full", model)
    with pytest.raises(ValueError, match=r"attention|LinearAttention"), Decoder(model, by_name("hf_dynamic", model)):
        pass


def test_a_state_of_another_kind_is_refused():
    shape = {"hidden_size": 64, "num_heads": 2, "num_hidden_layers": 1, "vocab_size": 8}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(xLSTMConfig(**shape))
    with pytest.raises(ValueError, match=r"model=xLSTMForCausalLM: .* valid: Mamba, Falcon Mamba, Mamba-2, RWKV-4"):
        build_cache(model, kv_budget=None)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_a_token_cannot_be_taken_back(name):
    with pytest.raises(ValueError, match=r"crop\(-1\): a state cannot forget a token; valid: a new cache"):
        build_cache(model_of(name), kv_budget=None).crop(-1)
