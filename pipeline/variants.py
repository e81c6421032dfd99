"""What the command line changed of a published point, as part of its name: `attention_sink+scorer.n_sinks=8`.

Without it, a changed technique would lie where the published one lies, and speak in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline import ROOT

STRATEGIES = ROOT / "conf" / "strategy"
WEIGHTS = ROOT / "conf" / "weights"


def variant(name: str, parts: dict[str, dict[str, Any]]) -> str:
    """The strategy's name and, axis by axis, where `parts` differ from those of its file."""
    published = _load(STRATEGIES / f"{name}.yaml")["defaults"]
    axes = {axis: option for entry in published if isinstance(entry, dict) for axis, option in entry.items()}
    return "+".join(
        [name, *(change for axis, option in axes.items() for change in _changes(axis, option, parts[axis]))]
    )


def weights_variant(name: str, transforms: dict[str, dict[str, Any]]) -> str:
    """The name of a point of the weights axis and what differs from its file: `smoothquant+smooth.alpha=0.5`.

    Raises ValueError where the transforms are others than those of its file.
    """
    published = _load(WEIGHTS / f"{name}.yaml")["transforms"]
    if _classes(published) != _classes(transforms):
        raise ValueError(f"weights.transforms={transforms}: not those of weights={name}; valid: a file of their own in "
                         "conf/weights")  # fmt: skip
    options = [(part, key, value) for part, own in transforms.items() for key, value in own.items()]
    changed = (f"{part}.{key}={value}" for part, key, value in options if value != published[part].get(key))
    return "+".join([name, *changed])


def _classes(transforms: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """In order: it is the order in which they are applied."""
    return [(name, transform["_target_"]) for name, transform in transforms.items()]


def takes_budget(name: str, schedule: Mapping[str, Any] | None) -> bool:
    """Whether a technique evicts: its schedule says so, or, of another package, the budget in its file."""
    if schedule is None:
        return _load(STRATEGIES / f"{name}.yaml")["keep_ratio"] is not None
    return not schedule["_target_"].endswith(".Never")


def _changes(axis: str, option: str, part: dict[str, Any]) -> list[str]:
    """From the published option, or from the one of the part's class that is most like it."""
    options = {path.stem: _load(path) for path in sorted((STRATEGIES / axis).glob("*.yaml"))}
    changed = {
        other: [f"{axis}.{key}={part[key]}" for key, value in content.items() if _differs(value, part[key])]
        for other, content in options.items()
        if content["_target_"] == part["_target_"]
    }
    chosen = min(changed, key=lambda other: (other != option, len(changed[other])))
    return changed[chosen] if chosen == option else [f"{axis}={chosen}", *changed[chosen]]


def _differs(published: Any, value: Any) -> bool:
    """What is taken from elsewhere in the configuration is no change of the point."""
    return value != published and not str(published).startswith("${")


def _load(path: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]
