"""A model from its published shape alone: the configuration that a YAML spells out, and seeded random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class ModelSpec(Protocol):
    """One file of conf/model, resolved."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def max_seq_len(self) -> int | None: ...
    @property
    def config(self) -> dict[str, Any] | None: ...


def config_of(spec: ModelSpec) -> PreTrainedConfig:
    """The shape that the YAML spells out. Raises ValueError where Transformers refuses it."""
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(spec.config or {}), _convert_="all")
    except HydraException as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"model.config of {spec.name}: {cause}; valid: the fields of its _target_") from None


def random_model(config: PreTrainedConfig, dtype: torch.dtype, device: str, seed: int) -> PreTrainedModel:
    """Drawn once, directly in `dtype`: matrices normal with `initializer_range`, norm weights 1, biases 0.

    GPT-2 scales some projections down by depth; with random weights that changes no cost, so it is left out. Models
    with a recurrent state do not learn from such numbers, and initialise themselves as their papers say.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    with torch.no_grad():
        if model._is_stateful:
            _initialise_itself(model, seed)
        else:
            _draw(model, torch.Generator(device).manual_seed(seed))
    return model


def _initialise_itself(model: PreTrainedModel, seed: int) -> None:
    import torch

    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.apply(model._init_weights)


def _draw(model: PreTrainedModel, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0.0, model.config.initializer_range, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
