"""What a folder must hold to be loaded as a model: whole safetensors and a configuration. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
VALID = f"a folder with {CONFIG} and {WEIGHTS}, or its shards with {INDEX}"


def check(folder: Path) -> None:
    """Raises ValueError, one line, for a folder that is not there, not whole, or holds pickles only."""
    if not folder.is_dir():
        raise _refusal(folder, "no such folder")
    shards = _shards(folder)
    check_config(folder)
    for name, tensors in shards.items():
        _check_shard(folder, name, tensors)


def check_config(folder: Path) -> None:
    """Raises ValueError, one line, for a folder that is not there, or says nothing about its model."""
    if not folder.is_dir():
        raise _refusal(folder, "no such folder")
    if not (folder / CONFIG).is_file():
        raise _refusal(folder, f"no {CONFIG}")


def weights(folder: Path) -> list[Path]:
    """The files that Transformers loads: the one of all weights, or the shards that the index names."""
    return [folder / name for name in _shards(folder)]


def _shards(folder: Path) -> dict[str, set[str]]:
    """File names with the tensors that the index expects in them, which is silent on a single file."""
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: set()}
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        raise _refusal(folder, f"only pickled weights ({pickles[0]}), which can run code" if pickles else "no weights")
    try:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        return {name: {key for key, place in places.items() if place == name} for name in sorted(set(places.values()))}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _refusal(folder, f"{INDEX} has no readable weight_map") from None


def _check_shard(folder: Path, name: str, tensors: set[str]) -> None:
    """By its header, which says how long the file must be; the weights themselves are not read."""
    from safetensors import SafetensorError, safe_open

    if not (folder / name).is_file():
        raise _refusal(folder, f"{name} is missing, which {INDEX} names")
    try:
        with safe_open(folder / name, framework="numpy") as shard:
            missing = tensors - set(shard.keys())
    except (SafetensorError, OSError) as error:
        raise _refusal(folder, f"{name} is not whole ({error})") from None
    if missing:
        raise _refusal(folder, f"{name} lacks {min(missing)}, which {INDEX} promises")


def _refusal(folder: Path, why: str) -> ValueError:
    return ValueError(f"model.path={folder}: {why}; valid: {VALID}")
