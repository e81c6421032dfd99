"""Laws of models with sparse attention: what is out of reach is freed, and nobody can tell."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from pipeline import models
from pipeline.config import Model
from pipeline.decoding import Decoder
from pipeline.library import build_cache
from pipeline.memory.costs import footprint
from strategies.model import blockwise
from strategies.model.sparse import SparseLlamaForCausalLM
from tests.strategies.model.sparse_models import KINDS, N_LAYERS, PATTERNS, STATIC, VOCAB, config, mask, model, prompt

N_NEW = 64  # several windows


def greedy(decoder, ids, n_new=N_NEW):
    """The prompt's last logits, then those of every new token, and the tokens [B, n_new]."""
    logits, chosen = [decoder.feed(ids)], []
    for _ in range(n_new):
        chosen.append(logits[-1].argmax(-1, keepdim=True))
        logits.append(decoder.feed(chosen[-1]))
    return torch.stack(logits, 1), torch.cat(chosen, 1)


@pytest.mark.parametrize("n_prompt", [1, 7, 8, 45])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_without_a_cache(kind, n_prompt):
    ids = prompt(2, n_prompt)
    with Decoder(model(kind), model(kind).new_cache(N_NEW)) as decoder:
        logits, chosen = greedy(decoder, ids)
    expected, reference = greedy(Decoder(model(kind), None), ids)
    assert chosen.equal(reference)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("n_prompt", [1, 7, 45])
@pytest.mark.parametrize("kind", STATIC)
def test_what_is_held_is_what_a_later_query_sees(kind, n_prompt):
    """After every step, by brute force: which tokens, where their keys and values lie, and how many bytes they take."""
    ids, horizon = prompt(2, n_prompt + N_NEW), n_prompt + N_NEW
    cache, whole = model(kind).new_cache(N_NEW), DynamicCache(config=model(kind).config)
    most, held = [0] * N_LAYERS, set()
    for n_seen, new in enumerate(ids[:, n_prompt - 1 :].split(1, dim=1), start=n_prompt):
        with torch.inference_mode():
            for each in (cache, whole):
                model(kind)(ids[:, :n_prompt] if n_seen == n_prompt else new, past_key_values=each, use_cache=True)
        n_bytes = 0
        for i, (layer, everything) in enumerate(zip(cache.layers, whole.layers, strict=True)):
            expected = mask(kind, i, horizon)[n_seen - 1 :, :n_seen].any(0).nonzero()[:, 0]
            positions, slots = layer.plan.held(n_seen)
            assert positions.equal(expected)
            torch.testing.assert_close(layer.keys[:, :, slots], everything.keys[:, :, expected])
            torch.testing.assert_close(layer.values[:, :, slots], everything.values[:, :, expected])
            most[i] = max(most[i], len(expected))
            n_bytes += len(expected) * 2 * (2 * 2 * 8 * 8)  # keys and values of 2 rows, 2 heads, 8 doubles
        assert cache.bytes_logical == n_bytes
        held.add(cache.bytes_held)
    assert [layer.keys.shape[2] for layer in cache.layers] == most
    tables = {id(layer.plan): 3 * 8 * len(layer.plan.positions) for layer in cache.layers}
    assert held == {sum(most) * 2 * (2 * 2 * 8 * 8) + sum(tables.values())}


@pytest.mark.parametrize("kind", STATIC)
def test_logits_are_those_of_the_whole_past_under_the_mask(kind):
    ids = prompt(2, 45 + N_NEW)
    whole = DynamicCache(config=model(kind).config)
    with torch.inference_mode(), Decoder(model(kind), model(kind).new_cache(N_NEW)) as decoder:
        for new in (ids[:, :45], *ids[:, 45:].split(1, dim=1)):
            expected = model(kind)(new, past_key_values=whole, use_cache=True, logits_to_keep=1).logits[:, -1]
            torch.testing.assert_close(decoder.feed(new), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_several_tokens_at_once_are_as_if_one_by_one(kind):
    ids = prompt(2, 120)
    with Decoder(model(kind), model(kind).new_cache(99)) as decoder:
        parts = [decoder.feed(new, all_logits=True) for new in ids.split([21, 1, 40, 3, 1, 54], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), Decoder(model(kind), None).feed(ids, all_logits=True))


@pytest.mark.parametrize("kind", KINDS)
def test_four_rows_are_four_times_one(kind):
    ids = prompt(4, 33)
    with Decoder(model(kind), model(kind).new_cache(N_NEW)) as decoder:
        together, _ = greedy(decoder, ids)
    for row, expected in zip(ids.split(1), together.split(1), strict=True):
        with Decoder(model(kind), model(kind).new_cache(N_NEW)) as decoder:
            torch.testing.assert_close(greedy(decoder, row)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_forgets_and_a_copy_goes_its_own_way(kind):
    cache = model(kind).new_cache(N_NEW)
    assert cache.bytes_held == cache.bytes_logical == 0
    with Decoder(model(kind), cache) as decoder:
        first, _ = greedy(decoder, prompt(2, 33))
    twin = copy.deepcopy(cache)
    cache.reset()
    assert cache.bytes_held == cache.bytes_logical == cache.get_seq_length() == 0
    assert twin.get_seq_length() == 33 + N_NEW and twin.bytes_held > 0
    with Decoder(model(kind), cache) as decoder:
        decoder.feed(prompt(2, 9, seed=1))
        twin = Decoder(model(kind), copy.deepcopy(cache))
        decoder.teacher_force(prompt(2, 20, seed=2))
        again = twin.teacher_force(prompt(2, 20, seed=3))
    cache.reset()
    with Decoder(model(kind), cache) as decoder:
        assert greedy(decoder, prompt(2, 33))[0].equal(first)
        cache.reset()
    with Decoder(model(kind), cache) as decoder:
        decoder.feed(prompt(2, 9, seed=1))
        assert decoder.teacher_force(prompt(2, 20, seed=3)).equal(again)


@pytest.mark.parametrize("kind", KINDS)
def test_reordered_rows_take_everything_with_them(kind):
    ids, order = prompt(3, 50), torch.tensor([2, 0, 0])
    with Decoder(model(kind), model(kind).new_cache(20)) as decoder:
        decoder.feed(ids[:, :30])
        decoder.cache.reorder_cache(order)
        found = decoder.teacher_force(ids[:, 30:])
    with Decoder(model(kind), model(kind).new_cache(20)) as decoder:
        decoder.feed(ids[order, :30])
        torch.testing.assert_close(found, decoder.teacher_force(ids[:, 30:]))


@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_same_tokens(kind):
    ids = prompt(2, 33)
    _, expected = greedy(Decoder(model(kind), None), ids, 20)
    how = {"max_new_tokens": 20, "do_sample": False}
    assert model(kind).generate(ids, past_key_values=model(kind).new_cache(20), **how)[:, 33:].equal(expected)
    if kind in STATIC:
        assert model(kind).generate(ids, **how)[:, 33:].equal(expected)
    else:
        with pytest.raises(ValueError, match=r"past_key_values=DynamicCache: .*valid: model.new_cache"):
            model(kind).generate(ids, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_the_same_model_again(kind, tmp_path):
    model(kind).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(loaded, SparseLlamaForCausalLM) and loaded.config.pattern == model(kind).config.pattern
    assert loaded(prompt(1, 40)).logits.equal(model(kind)(prompt(1, 40)).logits)
    place = {"source": "checkpoint", "path": str(tmp_path), "config": None}
    spec = Model(name=kind, title=kind, max_seq_len=None, hard_limit=False, **place)
    assert isinstance(models.load(spec, "float64", "cpu", 0).model, SparseLlamaForCausalLM)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_alone_say_what_will_be_held(kind):
    with torch.device("meta"):
        outline = SparseLlamaForCausalLM(config(kind)).double().eval()
    said = footprint(lambda n: Decoder(outline, outline.new_cache(n)), seq_len=45, batch=2, n_new_tokens=30)
    with Decoder(model(kind), model(kind).new_cache(30)) as decoder:
        decoder.feed(prompt(2, 45))
        assert said.held == decoder.kv_bytes_held


@pytest.mark.parametrize("kind", KINDS)
def test_the_pattern_goes_by_the_index_however_far_apart_positions_are(kind):
    """Only differences of positions matter, as with any rotary model, and a gap hides nobody."""
    ids, near = prompt(2, 60), torch.arange(60).expand(2, -1)
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    expected = model(kind)(position_ids=near, **call).logits
    torch.testing.assert_close(model(kind)(position_ids=near + 100, **call).logits, expected, atol=1e-4, rtol=1e-4)
    gap = near + 500 * (near >= 59)
    assert not model(kind)(position_ids=gap, **call).logits[:, -1].isclose(expected[:, -1]).all()
    assert model(kind)(position_ids=gap, **call).logits[:, :-1].allclose(expected[:, :-1])


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_weight_but_the_rotations(kind):
    trained = copy.deepcopy(model(kind)).train()
    trained(prompt(2, 60)).logits.square().mean().backward()
    for name, parameter in trained.named_parameters():
        assert ("rotations" in name) == (not parameter.requires_grad)
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_what_evaluation_has_prepared_serves_training(kind, monkeypatch):
    """Masks and blocks are kept by their length, and tensors made in inference mode would not be differentiable."""
    trained = copy.deepcopy(model(kind)).train()
    for blocks_from, n_tokens in ((1000, 71), (1, 72)):
        monkeypatch.setattr(blockwise, "BLOCKWISE", blocks_from)
        with torch.inference_mode(), Decoder(trained, trained.new_cache(5)) as decoder:
            decoder.feed(prompt(1, n_tokens))
            decoder.feed(prompt(1, 5))
        trained(prompt(2, n_tokens)).logits.square().mean().backward()
        with Decoder(trained, trained.new_cache(5)) as decoder:
            decoder.feed(prompt(1, n_tokens))
    assert all(parameter.grad.isfinite().all() for parameter in trained.parameters() if parameter.requires_grad)


def test_a_window_of_everything_is_llama():
    theirs = LlamaForCausalLM(LlamaConfig(**{**config("longformer").to_dict(), "model_type": "llama"})).double().eval()
    ours = SparseLlamaForCausalLM(config("longformer")).double().eval()
    ours.load_state_dict(theirs.state_dict())
    ids = prompt(2, 8)  # of a window of 8
    assert ours(ids).logits.equal(theirs(ids).logits)
    assert not ours(prompt(2, 30)).logits.allclose(theirs(prompt(2, 30)).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_another_attention_is_refused(kind):
    with (
        pytest.raises(ValueError, match=r"model=SparseLlamaForCausalLM: .*obeys a pattern.*valid: strategy=native"),
        build_cache("full", model(kind)).attached(model(kind)),
    ):
        raise AssertionError("attached")
    assert Decoder(model(kind), None).feed(prompt(1, 5)).isfinite().all()


def test_a_cache_in_the_wrong_hands_is_refused():
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4))
    with pytest.raises(ValueError, match="only models with sparse attention"):
        llama(prompt(1, 4), past_key_values=model("longformer").new_cache(4))


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_refused_in_one_line(kind):
    cache = model(kind).new_cache(3)
    with Decoder(model(kind), cache) as decoder:
        decoder.feed(prompt(1, 5))
        with pytest.raises(ValueError, match=r"headroom=3: .*valid: 4 or more"):
            decoder.feed(prompt(1, 4))
        assert cache.get_seq_length() == 5
    with pytest.raises(ValueError, match="crop"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="headroom=0"):
        model(kind).new_cache(0)
    with pytest.raises(ValueError, match="attention_mask: padding"):
        model(kind)(prompt(1, 3), attention_mask=torch.tensor([[0, 1, 1]]))


@pytest.mark.parametrize(
    "pattern, error",
    [
        (None, "pattern.kind=None: unknown; valid: longformer, "),
        ({"kind": "stride"}, "pattern.kind=stride: unknown"),
        ({"kind": "strided", "window": 8}, "valid: the fields of strided"),
        ({"kind": "strided", "stride": 0}, "pattern.stride=0: too small; valid: 1 or more"),
        ({"kind": "longformer", "window": 0, "n_global": 1}, "pattern.window=0"),
        ({"kind": "dilated", "window": 4, "dilations": [0]}, "pattern.dilations=0"),
        ({"kind": "bigbird", **PATTERNS["bigbird"], "n_random": -1}, "pattern.n_random=-1"),
        ({"kind": "lsh", **PATTERNS["lsh"], "n_buckets": 7}, "pattern.n_buckets=7"),
        ({"kind": "lsh", **PATTERNS["lsh"]}, "num_key_value_heads=2"),
    ],
)
def test_a_wrong_pattern_is_refused(pattern, error):
    given = config("longformer")
    given.pattern = pattern
    with pytest.raises(ValueError, match=error):
        SparseLlamaForCausalLM(given)
