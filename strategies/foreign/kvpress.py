"""The presses of kvpress (NVIDIA): after the prompt, each layer keeps the tokens a press scored best.

What is generated afterwards is kept on top. Importing kvpress wraps the attention functions of Transformers for good,
so it happens only here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers import __version__ as transformers_version

from strategies.foreign.stock import StockAttention


class PressedCache(StockAttention, DynamicCache):
    """A DynamicCache that a press shrinks right after the prompt, by hooks that are there while it is attached."""

    def __init__(self, press: Any, kv_budget: int | None, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self.press = press
        self.kv_budget = kv_budget
        self.n_seen = 0
        self._fresh_layers = lambda: DynamicCache(config=model.config).layers

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        return self.press(model)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Raises ValueError for several tokens after the prompt: the stock mask would let them see the future."""
        if layer_idx == 0:
            self._count(key_states.shape[2])
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _count(self, n_new: int) -> None:
        if self.n_seen == 0:
            # Half a token more than the budget, which is rounded down: 1 - (1 - x) is not always x.
            budget = n_new if self.kv_budget is None else self.kv_budget + 0.5
            self.press.compression_ratio = max(0.0, 1 - budget / n_new)
        elif n_new > 1:
            raise ValueError(f"{n_new} tokens after a pressed prompt: not possible; valid: one at a time")
        self.n_seen += n_new

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, not tokens kept: the next token's position."""
        return self.n_seen

    def reset(self) -> None:
        self.layers, self.n_seen = self._fresh_layers(), 0


def pressed_cache(model: PreTrainedModel, *, kv_budget: int | None, headroom: int, press: str) -> PressedCache:
    """`press`: the name of a scoring press. `kv_budget`: tokens kept of the prompt; None keeps all of it.

    Raises ImportError where kvpress is missing or does not go with this Transformers, and ValueError for a press that
    does not score tokens and a model that kvpress does not know.
    """
    _require_compatible()
    import kvpress

    known = {
        name for name, item in vars(kvpress).items() if isinstance(item, type) and issubclass(item, kvpress.ScorerPress)
    }
    if press not in known:
        raise ValueError(f"strategy.cache.press={press}: no scoring press; valid: {', '.join(sorted(known))}")
    if not isinstance(model, kvpress.SUPPORTED_MODELS):
        valid = ", ".join(kind.__name__ for kind in kvpress.SUPPORTED_MODELS)
        raise ValueError(f"model={type(model).__name__}: not known to kvpress; valid: {valid}")
    return PressedCache(getattr(kvpress, press)(), kv_budget, model)


def _require_compatible() -> None:
    """kvpress says which Transformers it needs; with another one its hooks fail in the middle of a prompt."""
    try:
        requirements = [Requirement(line) for line in metadata.requires("kvpress") or []]
    except metadata.PackageNotFoundError:
        why = f"not installed, and its release 0.5.5 needs transformers<5.3, this is {transformers_version}"
        raise ImportError(f"strategy=kvpress: {why}; valid: a release that allows it", name="kvpress") from None
    needed = next(line for line in requirements if line.name == "transformers")
    if not needed.specifier.contains(transformers_version, prereleases=True):
        why = f"kvpress {metadata.version('kvpress')} needs {needed}, this is {transformers_version}"
        raise ImportError(f"strategy=kvpress: {why}; valid: a release that allows it", name="kvpress")
