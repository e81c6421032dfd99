import copy

import pytest
import torch

from pipeline.decoding import Decoder
from pipeline.finite import require_finite
from tests.pipeline.small import arm, model, tokens


def broken(layer: int | None, token: int | None = None) -> torch.nn.Module:
    """A copy of the model in which one layer's weights hold a NaN (None: the head); or only a token's embedding."""
    found = copy.deepcopy(model())
    if token is not None:
        torch.nn.init.constant_(found.get_input_embeddings().weight[token], float("nan"))
    elif layer is None:
        torch.nn.init.constant_(found.get_output_embeddings().weight, float("nan"))
    else:
        found.model.layers[layer].self_attn.q_proj.weight.data[0, 0] = float("nan")
    return found


def asked(of: torch.nn.Module, strategy: str = "full", n_new: int = 3) -> str:
    fed = [tokens(2, 12), *tokens(2, n_new, seed=1).split(1, dim=1)]

    def fresh() -> Decoder:
        return arm(strategy, of=of)(n_new)

    with fresh() as decoder, pytest.raises(FloatingPointError) as raised:
        for ids in fed:
            logits = decoder.feed(ids)
        require_finite(logits, fresh, fed)
    return str(raised.value)


@pytest.mark.parametrize("strategy", ["full", "no_cache"])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_error_names_the_layer_where_numbers_first_were_none(layer: int, strategy: str) -> None:
    said = asked(broken(layer), strategy)
    assert said == f"NaN or infinity at step 0 (the prompt), first in layer {layer}; use a wider dtype (dtype=float32)"


def test_an_error_tells_the_head_from_the_layers() -> None:
    assert "first in the head, behind the last layer" in asked(broken(None))


def test_an_error_names_the_step_where_numbers_first_were_none() -> None:
    second = int(tokens(2, 3, seed=1)[0, 1])
    assert second not in tokens(2, 12) and second not in tokens(2, 3, seed=1)[:, 0]
    assert "at step 2, first in layer 0" in asked(broken(None, token=second))


def test_finite_numbers_pass_without_being_computed_again() -> None:
    def never() -> Decoder:
        raise AssertionError

    require_finite(torch.zeros(2, 3), never, [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_does_not_come_up_again_is_an_error_all_the_same(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="did not come up again"):
        require_finite(torch.tensor([0.0, bad]), lambda: arm("full")(1), [tokens(1, 4)])
