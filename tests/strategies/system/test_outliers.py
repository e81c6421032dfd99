"""Planted outliers change nothing but what 8 bits can hold: naive W8A8 breaks on them, SmoothQuant restores it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline import corpus, models
from strategies.system.outliers import Outliers
from strategies.system.smoothquant import Smooth
from strategies.system.w8a8 import W8A8
from tests.strategies.system.smooth_models import build, logits, prompt

FORMS = {
    "per_channel": ("per_channel", "per_token"),
    "o1": ("per_tensor", "per_token"),
    "o2": ("per_tensor", "per_tensor"),
    "o3": ("per_tensor", "static"),
}
N_CHANNELS, FACTOR, SEED = 2, 100.0, 0
NEAR_NATS, BROKEN_NATS = 0.02, 0.2
NORMS = ("input_layernorm", "post_attention_layernorm", "ln_1", "ln_2")


def plant(model, n_channels, factor, seed):
    """A copy with outliers."""
    planted = copy.deepcopy(model)
    Outliers(n_channels, factor, seed)(planted, None)
    return planted


@torch.no_grad()
def nll(model, windows):
    """Mean loss in nats per token of each window [N, T + 1] → [N] float64."""
    logits = model(windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.transpose(1, 2).float(), windows[:, 1:], reduction="none").double().mean(1)


@pytest.fixture(scope="module")
def tiny():
    return models._pretrained(models.folder_of("models/tiny"), torch.float32, "cpu").eval()


@pytest.fixture(scope="module")
def text():
    return corpus.held_out_tokens(models.folder_of("models/tiny") / "tokenizer.json")


def windows(text, n=8, length=257):
    return text[(torch.arange(n) * len(text) // (2 * n))[:, None] + torch.arange(length)]


def lost(model, text, *transforms) -> float:
    """Nats per token over the model as it is; calibrated on other text than is scored."""
    quantised = copy.deepcopy(model)
    for transform in transforms:
        transform(quantised, text[-1024:].view(2, 512))
    return (nll(quantised, windows(text)) - nll(model, windows(text))).mean().item()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_outliers_change_no_logit(kind):
    model = build(kind)
    planted = plant(model, 3, 64.0, seed=1)
    torch.testing.assert_close(logits(planted, prompt(2, 32)), logits(model, prompt(2, 32)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_so_many_channels_stand_out_in_every_norm(kind):
    def channels(model):
        seen = []
        norms = [module for name, module in model.named_modules() if name.endswith(tuple(NORMS))]
        hooks = [norm.register_forward_hook(lambda *io: seen.append(io[2].abs().amax((0, 1)))) for norm in norms]
        logits(model, prompt(2, 32))
        for hook in hooks:
            hook.remove()
        return torch.stack(seen)

    model = build(kind)
    grown = channels(plant(model, 3, 64.0, seed=1)) / channels(model)
    torch.testing.assert_close(grown.sort(dim=1).values[:, -3:], torch.full((4, 3), 64.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(grown.sort(dim=1).values[:, :-3], torch.ones(4, 29), rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_on_the_plain_model_8_bits_cost_nothing(tiny, text, form):
    assert abs(lost(tiny, text, W8A8(*FORMS[form]))) < NEAR_NATS
    assert abs(lost(tiny, text, Smooth(), W8A8(*FORMS[form]))) < NEAR_NATS


@pytest.mark.parametrize("form", FORMS)
def test_outliers_break_8_bits_and_smoothing_restores_them(tiny, text, form):
    planted = plant(tiny, N_CHANNELS, FACTOR, SEED)
    assert abs(lost(tiny, text)) == 0
    assert lost(planted, text, W8A8(*FORMS[form])) > BROKEN_NATS
    assert abs(lost(planted, text, Smooth(), W8A8(*FORMS[form]))) < NEAR_NATS


@pytest.mark.parametrize("n_channels", [0, 33])
def test_channels_that_are_not_there_are_refused(n_channels):
    with pytest.raises(ValueError, match=f"^n_channels={n_channels}: the model has 32; valid: 1 … 32"):
        plant(build("llama"), n_channels, 10.0, seed=0)
