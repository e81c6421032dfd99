from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from strategies.system.linears import linears
from strategies.system.smoothquant import Smooth
from strategies.system.w8a8 import W8A8, W8A8Linear
from tests.strategies.system.smooth_models import KINDS, build, logits, prompt

FORMS = list(itertools.product(("per_channel", "per_tensor"), ("per_token", "per_tensor", "static")))


def layer(weights="per_channel", activations="per_token", dtype=torch.float32, largest=None) -> W8A8Linear:
    torch.manual_seed(0)
    return W8A8Linear(nn.Linear(64, 48).to(dtype), weights, activations, largest)


def transformed(kind="llama", weights="per_channel", activations="per_token", dtype=torch.float32):
    model = build(kind, dtype)
    W8A8(weights, activations)(model, prompt(2, 32))
    return model


def held(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}


def by_hand(module: W8A8Linear, entering: torch.Tensor) -> torch.Tensor:
    """In float64, one code after the other."""
    rows = entering.double()
    scale = {
        "per_token": rows.abs().amax(-1, keepdim=True) / 127,
        "per_tensor": rows.abs().max() / 127,
        "static": module.activation_scale,
    }[module.activations]
    codes = (rows / scale).round().clamp(-127, 127)
    return codes @ module.codes.double().T * scale * module.scale + module.bias.double()


@pytest.mark.parametrize(("weights", "activations"), FORMS)
def test_a_layer_is_the_product_of_its_integers(weights, activations):
    module = layer(weights, activations, largest=torch.tensor(2.0) if activations == "static" else None)
    entering = torch.randn(3, 20, 64)
    torch.testing.assert_close(module(entering), by_hand(module, entering).float(), atol=1e-5, rtol=1e-5)


def test_weights_are_within_half_a_step():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    module = W8A8Linear(linear, "per_channel", "per_token", None)
    missed = (module.codes * module.scale[:, None] - linear.weight).abs()
    assert module.codes.abs().amax(1).eq(127).all()
    assert (missed <= module.scale[:, None] / 2 * 1.001).all()


def test_one_scale_for_each_channel_or_for_all():
    assert layer("per_channel").scale.shape == (48,)
    assert layer("per_tensor").scale.shape == (1,)


@pytest.mark.parametrize("n_tokens", [1, 5, 30])
def test_a_token_does_not_know_the_batch_it_is_in(n_tokens):
    module, entering = layer(), torch.randn(4, n_tokens, 64)
    alone = torch.cat([module(row[None]) for row in entering])
    assert torch.equal(module(entering), alone)


def test_with_one_scale_for_the_whole_input_it_does():
    module, entering = layer(activations="per_tensor"), torch.randn(4, 5, 64)
    assert not torch.equal(module(entering), torch.cat([module(row[None]) for row in entering]))


def test_static_scales_are_those_of_the_calibration_and_clip_what_is_larger():
    model = build("llama")
    largest = {}
    for name, linear in linears(model).items():
        linear.register_forward_pre_hook(lambda _, io, name=name: largest.update({name: io[0].abs().max()}))
    logits(model, prompt(2, 32))
    W8A8("per_tensor", "static")(model, prompt(2, 32))
    for name, expected in largest.items():
        torch.testing.assert_close(model.get_submodule(name).activation_scale * 127, expected)
    module = layer(activations="static", largest=torch.tensor(0.5))
    assert torch.equal(module(torch.full((1, 64), 0.5)), module(torch.full((1, 64), 8.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_stay_near_in_every_dtype(kind, dtype):
    exact = logits(build(kind, torch.float64), prompt(2, 32))
    rounded = logits(transformed(kind, dtype=dtype), prompt(2, 32))
    assert rounded.dtype == dtype
    missed = (rounded.double() - exact).norm() / exact.norm()
    assert 0 < missed < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_the_blocks_is_held_in_8_bits_and_no_other(kind):
    model = transformed(kind)
    assert not any(isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
                   for module in model.modules())  # fmt: skip
    codes = {name for name, (_, dtype) in held(model).items() if dtype == torch.int8}
    assert codes == {f"{name}.codes" for name in linears(build(kind))}


@pytest.mark.parametrize(("weights", "activations"), FORMS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_shapes_are_known_before_anything_is_loaded(kind, weights, activations):
    with torch.device("meta"):
        outline = KINDS[kind]().eval()
    Smooth()(outline, None)
    W8A8(weights, activations)(outline, None)
    assert held(outline) == held(transformed(kind, weights, activations))


def test_generation_copies_and_repeats():
    model = transformed()
    ids = prompt(2, 12)
    first = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(first, model.generate(ids, max_new_tokens=8, do_sample=False))
    assert torch.equal(first, copy.deepcopy(model).generate(ids, max_new_tokens=8, do_sample=False))
    assert torch.equal(first, transformed().generate(ids, max_new_tokens=8, do_sample=False))


@pytest.mark.parametrize(("given", "named"), [
    ({"weights": "per_row"}, "weights=per_row: unknown; valid: per_channel, per_tensor"),
    ({"activations": "per_channel"}, "activations=per_channel: unknown; valid: per_token, per_tensor, static"),
])  # fmt: skip
def test_unknown_granularities_are_refused(given, named):
    with pytest.raises(ValueError, match=named):
        W8A8(**given)


@pytest.mark.parametrize("ids", [None, torch.empty(0, 4, dtype=torch.long)])
def test_static_scales_need_calibration(ids):
    model = build("llama")
    before = held(model)
    with pytest.raises(ValueError, match="calibration=empty"):
        W8A8(activations="static")(model, ids)
    assert held(model) == before


def test_what_is_held_already_is_refused():
    with pytest.raises(ValueError, match="no layer with plain weights"):
        W8A8()(transformed(), None)
