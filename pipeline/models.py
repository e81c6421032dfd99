"""Where a model comes from: an embedded checkpoint, a published shape with random weights, or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import ROOT
from pipeline.shapes import ModelSpec, config_of, random_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

SOURCES = ("checkpoint", "random", "hub")
DTYPES = ("float32", "float64", "bfloat16", "float16")
WEIGHTS = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class LoadedModel:
    model: PreTrainedModel  # in eval mode, sdpa attention
    name: str
    weights_sha256: str | None  # of a local file; None for random weights and for the hub's
    tokenizer_path: Path | None


def check(spec: ModelSpec) -> None:
    """The refusals that need neither weights nor torch: ValueError naming field, value and what is valid."""
    if spec.source not in SOURCES:
        raise ValueError(f"model.source={spec.source}: unknown; valid: {', '.join(SOURCES)}")
    if spec.source == "random":
        if not spec.config or "_target_" not in spec.config:
            raise ValueError(f"model.config={spec.config}: no shape for random weights; valid: a Transformers config")
    elif not spec.path:
        raise ValueError(f"model.path=null: source={spec.source} needs one; valid: a folder, or the id of a model")
    elif spec.source == "checkpoint" or _looks_local(spec.path):
        _check_folder(folder_of(spec.path))


def folder_of(path: str) -> Path:
    """Relative paths start at the project, wherever the command was typed."""
    return ROOT / Path(path).expanduser()


def load(spec: ModelSpec, dtype: str, device: str, seed: int) -> LoadedModel:
    """The model in eval mode on `device`; random weights are bit-identical for the same seed.

    Raises ValueError for everything `check` refuses, an unknown dtype, and a hub model that cannot be had.
    """
    check(spec)
    if spec.source == "random":
        model = random_model(config_of(spec), _torch_dtype(dtype), device, seed)
    else:
        model = _pretrained(spec, _torch_dtype(dtype), device)
    folder = folder_of(spec.path) if spec.path and spec.source != "random" else None
    weights, tokenizer = (folder / WEIGHTS, folder / "tokenizer.json") if folder else (None, None)
    return LoadedModel(
        model=model.eval(),
        name=spec.name,
        weights_sha256=file_sha256(weights) if weights and weights.is_file() else None,
        tokenizer_path=tokenizer if tokenizer and tokenizer.is_file() else None,
    )


def outline(spec: ModelSpec, dtype: str) -> PreTrainedModel:
    """The model without its weights, on the meta device: enough to count what it would cost.

    Raises ValueError for everything that `load` refuses.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check(spec)
    config = config_of(spec) if spec.source == "random" else _pretrained_config(spec)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=_torch_dtype(dtype))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of Transformers for the reading and writing of a few weights."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype={name}: unknown; valid: {', '.join(DTYPES)}")
    return getattr(torch, name)


def _pretrained(spec: ModelSpec, dtype: torch.dtype, device: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with quiet(), _one_line(spec):
        model = AutoModelForCausalLM.from_pretrained(
            **_source(spec), dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
        return model.to(device)  # type: ignore[arg-type]  # the decorated method loses its signature


def _pretrained_config(spec: ModelSpec) -> PreTrainedConfig:
    from transformers import AutoConfig

    with _one_line(spec):
        return AutoConfig.from_pretrained(**_source(spec))


def _source(spec: ModelSpec) -> dict[str, Any]:
    """Where Transformers finds it; a local folder needs no network, and no model brings code of its own."""
    assert spec.path is not None
    local = spec.source == "checkpoint" or _looks_local(spec.path)
    return {
        "pretrained_model_name_or_path": folder_of(spec.path) if local else spec.path,
        "local_files_only": local,
        "trust_remote_code": False,
    }


@contextmanager
def _one_line(spec: ModelSpec) -> Iterator[None]:
    """The errors of Transformers as one of ours."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        valid = "a folder or hub id of a causal LM in safetensors, or model.source=random where the shape is enough"
        raise ValueError(f"model.path={spec.path}: cannot be loaded ({why}); valid: {valid}") from None


def _looks_local(path: str) -> bool:
    """Hub ids have one slash at most and never start like a path."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or folder_of(path).exists()


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"model.path={folder}: no such folder; valid: a folder with config.json and {WEIGHTS}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        why = f"only pickled weights ({pickles[0]}), which can run code" if pickles else "no weights"
        raise ValueError(f"model.path={folder}: {why}; valid: a folder with config.json and {WEIGHTS}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.path={folder}: no config.json; valid: a folder with config.json and {WEIGHTS}")
