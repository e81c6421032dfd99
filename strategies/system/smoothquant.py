"""SmoothQuant: outliers of activations are moved into the weights before both are quantised.

Paper: https://arxiv.org/abs/2211.10438. Channel j of what a norm gives is divided by
s_j = max|X_j|^α / max|W_j|^(1 − α), where W_j spans all layers that read it, and their columns are multiplied by it;
the function stays what it was. The paper sets α by the family of the model; where it is not given, we choose the one
of a grid whose 8-bit products (per channel, per token) miss the real ones least on the calibration text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from strategies.system.integers import quantise, scale_of
from strategies.system.linears import matrix, observe
from strategies.system.norms import Fed, fed_by_norms

GRID = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SMALLEST = 1e-5
_ROWS = 512  # of each layer's input that are multiplied to compare the grid; the maxima are of all


class Smooth:
    """Linear layers stay linear layers: what quantises them comes after. `alpha` None is chosen from `GRID`.

    `chosen` is the α of the model that was smoothed last.
    """

    needs_calibration = True

    def __init__(self, alpha: float | None = None):
        if alpha is not None:
            _check_alpha(alpha)
        self.alpha = alpha
        self.chosen: float | None = None

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, ids: Tensor | None) -> None:
        """Raises ValueError for blocks of an unknown kind, weights that are held already, and no calibration."""
        layers = fed_by_norms(model)
        if model.device.type == "meta":
            return
        seen = _required(ids)
        alpha = self.chosen = best_alpha(model, seen, GRID) if self.alpha is None else self.alpha
        largest: list[Tensor] = []
        _look_at(model, seen, layers, lambda _, entering: largest.append(_largest(entering)))
        for fed, activations in zip(layers, largest, strict=True):
            fed.rescale(_factors(activations, _largest_weights(fed), alpha).to(model.dtype))


def best_alpha(model: PreTrainedModel, ids: Tensor, grid: Sequence[float] = GRID) -> float:
    """Of `grid` the one with the smallest of `alpha_errors`. Raises ValueError as it does."""
    errors = alpha_errors(model, ids, grid)
    return min(errors, key=errors.__getitem__)


@torch.no_grad()
def alpha_errors(model: PreTrainedModel, ids: Tensor, grid: Sequence[float] = GRID) -> dict[float, float]:
    """For each α the squared error of the 8-bit products over the squared products, mean over the norms of a model.

    The model is left as it is. Raises ValueError for an empty grid, α outside [0, 1], and an empty calibration.
    """
    if not grid:
        raise ValueError("grid=[]: no α to choose from; valid: at least one")
    for alpha in grid:
        _check_alpha(alpha)
    layers, seen = fed_by_norms(model), _required(ids)
    errors = dict.fromkeys(grid, 0.0)

    def compare(fed: Fed, entering: Tensor) -> None:
        for alpha in grid:
            errors[alpha] += _error(fed, entering, alpha) / len(layers)

    _look_at(model, seen, layers, compare)
    return errors


def _error(fed: Fed, entering: Tensor, alpha: float) -> float:
    """Of integer products in floating point: a choice is no measurement of time."""
    factors = _factors(_largest(entering), _largest_weights(fed), alpha)
    rows = entering.flatten(0, -2).float()
    rows = rows[:: -(-len(rows) // _ROWS)]
    weight = torch.cat([matrix(linear).float() for linear in fed.consumers.values()])
    exact = rows @ weight.T
    return (
        (_rounded(rows / factors) @ _rounded(weight * factors).T - exact).square().sum() / exact.square().sum()
    ).item()


def _rounded(rows: Tensor) -> Tensor:
    """Each row in 8 bits of its own scale."""
    scale = scale_of(rows.abs().amax(1, keepdim=True))
    return quantise(rows, scale) * scale


def _look_at(model: PreTrainedModel, ids: Tensor, layers: list[Fed], look: Callable[[Fed, Tensor], None]) -> None:
    """Show `look` what each norm gives, in the order of `layers`."""
    first = {next(iter(fed.consumers)): fed for fed in layers}
    observe(model, ids, lambda name, entering: look(first[name], entering) if name in first else None)


def _factors(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """[n_in], from the largest magnitudes of each channel."""
    return (activations**alpha / weights ** (1 - alpha)).clamp(min=_SMALLEST)


def _largest(entering: Tensor) -> Tensor:
    return entering.flatten(0, -2).abs().amax(0).float().clamp(min=_SMALLEST)


def _largest_weights(fed: Fed) -> Tensor:
    columns = [matrix(linear).abs().amax(0).float() for linear in fed.consumers.values()]
    return torch.stack(columns).amax(0).clamp(min=_SMALLEST)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: nothing to migrate so much of; valid: 0 … 1, or null for the best of a grid")


def _required(ids: Tensor | None) -> Tensor:
    if ids is None or ids.numel() == 0:
        raise ValueError("calibration=empty: SmoothQuant needs to see activations; valid: at least one token")
    return ids
