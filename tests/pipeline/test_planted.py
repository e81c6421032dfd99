import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline import planted
from pipeline.tasks import WORD
from tests.pipeline.small import arm, model, tokens


def logits(of: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return of(ids).logits


def behind_sink(n: int = 40) -> torch.Tensor:
    ids = tokens(2, n) % WORD
    ids[:, 0] = WORD
    return ids


@pytest.mark.parametrize("pair", [0, 3])
def test_outlier_channels_change_no_logit(pair):
    outlying = planted.outlier_key_channels(model(torch.float32), scale=16.0, pair=pair)
    ids = tokens(2, 40)
    torch.testing.assert_close(logits(outlying, ids), logits(model(torch.float32), ids), atol=1e-4, rtol=0)


def test_outlier_channels_stand_out_in_every_key_that_is_held():
    keys = []
    for of in (model(), planted.outlier_key_channels(model(), scale=16.0, pair=1)):
        with arm("full", of=of)(1) as decoder:
            decoder.feed(tokens(1, 10))
        keys.append([layer.storage.tokens(10)[0] for layer in decoder.cache.layers])
    expected = torch.ones(8, dtype=torch.float64)
    expected[[1, 5]] = 16.0
    for before, after in zip(*keys, strict=True):
        torch.testing.assert_close(after, before * expected)


def test_a_sink_changes_no_logit_of_a_text_that_starts_with_it():
    sunk = planted.attention_sink(model(), WORD)
    torch.testing.assert_close(logits(sunk, behind_sink()), logits(model(), behind_sink()), atol=1e-4, rtol=0)


def test_without_its_sink_a_model_is_another():
    sunk = planted.attention_sink(model(), WORD)
    ids = behind_sink()[:, 1:]
    assert (logits(sunk, ids) - logits(model(), ids)).abs().mean() > 0.1


def test_idle_heads_rest_on_the_sink():
    sunk = planted.attention_sink(model(torch.float32), WORD)
    sunk.set_attn_implementation("eager")
    with torch.no_grad():
        weights = sunk(behind_sink(), output_attentions=True).attentions
    assert all(layer[:, -2:, :, 0].min() > 0.999 for layer in weights)


def test_a_planted_model_is_saved_and_loaded_as_any_other(tmp_path):
    sunk = planted.attention_sink(model(torch.float32), WORD)
    sunk.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model())
    assert torch.equal(logits(loaded, behind_sink()), logits(sunk, behind_sink()))


def test_planting_leaves_the_original_as_it_was():
    before = {name: value.clone() for name, value in model().state_dict().items()}
    planted.attention_sink(model(), WORD)
    planted.outlier_key_channels(model(), scale=16.0, pair=0)
    assert all(torch.equal(value, before[name]) for name, value in model().state_dict().items())
