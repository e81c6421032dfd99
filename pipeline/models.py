"""Where a model comes from: an embedded checkpoint, a published shape with random weights, a folder, or the hub."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import ROOT, folders, hub
from pipeline.folders import WEIGHTS
from pipeline.shapes import ModelSpec, config_of, random_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

SOURCES = ("checkpoint", "random", "hub")
DTYPES = ("float32", "float64", "bfloat16", "float16")
JUST_NOW_NS = 2_000_000_000
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how Transformers names the classes that predict the next token


class Spec(ModelSpec, Protocol):
    """One file of conf/model, resolved, with the commit that is wanted."""

    @property
    def revision(self) -> str | None: ...


@dataclass(frozen=True)
class LoadedModel:
    model: PreTrainedModel  # in eval mode, sdpa attention where its class has it
    name: str
    weights_sha256: str | None  # of an embedded checkpoint; see `identity` for any model
    tokenizer_path: Path | None


def check(spec: Spec) -> None:
    """The refusals that need neither network nor torch: ValueError naming field, value and what is valid."""
    if spec.source not in SOURCES:
        raise ValueError(f"model.source={spec.source}: unknown; valid: {', '.join(SOURCES)}")
    if spec.source == "random":
        if not spec.config or "_target_" not in spec.config:
            raise ValueError(f"model.config={spec.config}: no shape for random weights; valid: a Transformers config")
    elif not spec.path:
        raise ValueError(f"model.path=null: source={spec.source} needs one; valid: a folder, or the id of a model")
    elif _is_local(spec.source, spec.path):
        folders.check(folder_of(spec.path))
    _check_revision(spec)


def _check_revision(spec: Spec) -> None:
    if spec.revision is not None and not (spec.source == "hub" and not _is_local(spec.source, spec.path or "")):
        raise ValueError(f"model.revision={spec.revision}: only models of the hub have revisions; valid: null")


def folder_of(path: str) -> Path:
    """Relative paths start at the project, wherever the command was typed."""
    return ROOT / Path(path).expanduser()


def folder(source: str, path: str | None, revision: str | None) -> Path | None:
    """Where the files are, fetched from the hub where they are not yet; None for random weights.

    Raises ValueError for a hub that cannot be reached, an id or a revision that it does not have, and access denied.
    """
    if source == "random" or not path:
        return None
    return folder_of(path) if _is_local(source, path) else hub.snapshot(path, revision)


def identity(source: str, path: str | None, revision: str | None) -> dict[str, Any]:
    """What was really used: the commit of a hub's model, or the sha256 of every file of a folder; {} for random.

    Raises ValueError as `folder` does.
    """
    place = folder(source, path, revision)
    if place is None:
        return {}
    if not _is_local(source, path or ""):
        return {"path": path, "revision": place.name}
    files = [*folders.weights(place), *(place / name for name in (folders.INDEX, folders.CONFIG, folders.TOKENIZER))]
    return {"path": path, "files": {file.name: file_sha256(file) for file in files if file.is_file()}}


def load(spec: Spec, dtype: str, device: str, seed: int) -> LoadedModel:
    """The model in eval mode on `device`; random weights are bit-identical for the same seed.

    Raises ValueError for everything `configured` refuses, an unknown dtype, and weights that the folder lacks.
    """
    config = configured(spec)
    place = folder(spec.source, spec.path, spec.revision)
    if place is None:
        model, tokenizer = random_model(config, _torch_dtype(dtype), device, seed), None
    else:
        model, tokenizer = _pretrained(place, _torch_dtype(dtype), device), place / folders.TOKENIZER
    return LoadedModel(
        model=model.eval(),
        name=spec.name,
        weights_sha256=file_sha256(place / WEIGHTS) if place and spec.source == "checkpoint" else None,
        tokenizer_path=tokenizer if tokenizer and tokenizer.is_file() else None,
    )


def outline(spec: Spec, dtype: str) -> PreTrainedModel:
    """The model without its weights, on the meta device: enough to count what it would cost.

    Raises ValueError for everything that `configured` refuses.
    """
    return outlined(configured(spec), dtype)


def outlined(config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    """Of a configuration, as `outline`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # Of the ways to compute experts the one whose shapes do not depend on where the router sends tokens.
        model = AutoModelForCausalLM.from_config(config, dtype=_torch_dtype(dtype), experts_implementation="batched_mm")
        return model.eval()


def configured(spec: Spec) -> PreTrainedConfig:
    """Its configuration. Raises ValueError for everything that `check` and `folder` refuse, for a model that needs
    code of its own, and for what is not a causal language model, naming it.
    """
    check(spec)
    place = folder(spec.source, spec.path, spec.revision)
    if place is None:
        return config_of(spec)
    folders.check(place)
    if spec.source == "checkpoint" and spec.config:
        config_of(spec)  # whose class may be one of ours, which Transformers knows once it is imported
    return _described(place)


def shape(spec: Spec) -> PreTrainedConfig:
    """As `configured`, of a model whose weights need not be there: of a folder or the hub only config.json is read."""
    if spec.source == "random" or not spec.path:
        check(spec)
        return config_of(spec)
    _check_revision(spec)
    if not _is_local(spec.source, spec.path):
        return _described(hub.config(spec.path, spec.revision))
    folders.check_config(folder_of(spec.path))
    if spec.source == "checkpoint" and spec.config:
        config_of(spec)
    return _described(folder_of(spec.path))


def _described(place: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    with quiet(), _one_line(place):
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    _check_causal(place, config)
    return config


def n_positions(config: PreTrainedConfig) -> int | None:
    """Where positions are looked up they end with their table; None where they are computed."""
    computed = getattr(config, "rope_parameters", None)
    return None if computed else getattr(config, "max_position_embeddings", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and the warnings of Transformers: what matters of them is refused or recorded."""
    from transformers.utils import logging

    was_enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_enabled:
            logging.enable_progress_bar()


def file_sha256(path: Path) -> str:
    """Weights are large and every cell of a grid asks, so a file is read once in a process for each state of it.

    A file that changed just now may change again without a later time, and is read every time.
    """
    state = path.stat()
    if time.time_ns() - state.st_mtime_ns < JUST_NOW_NS:
        return _read_sha256(path)
    return _kept_sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _kept_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype={name}: unknown; valid: {', '.join(DTYPES)}")
    return getattr(torch, name)


def _pretrained(place: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Raises ValueError where a weight is missing or has another shape: Transformers would make up random numbers."""
    from transformers import AutoModelForCausalLM

    with quiet(), _one_line(place):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    model, found = loaded
    lacking = sorted(found["missing_keys"] | {name for name, *_ in found["mismatched_keys"]})
    if lacking:
        raise ValueError(
            f"model.path={place}: {len(lacking)} weights of {type(model).__name__} are missing or have another shape "
            f"({lacking[0]}); valid: the folder of exactly this model"
        )
    return model.to(device)


def _check_causal(place: Path, config: PreTrainedConfig) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    saved = (getattr(config, "architectures", None) or [known or type(config).__name__])[0]
    valid = "a decoder that predicts the next token"
    if known is None or config.is_encoder_decoder or not saved.endswith((known, *CAUSAL)):
        raise ValueError(f"model.path={place}: {saved} is not a causal language model; valid: {valid}")
    if method := (getattr(config, "quantization_config", None) or {}).get("quant_method"):
        raise ValueError(f"model.path={place}: its weights are quantised ({method}); valid: unquantised weights")
    if config.get_text_config() is not config:
        raise ValueError(f"model.path={place}: {saved} is a language model inside a larger one; valid: {valid} alone")


@contextmanager
def _one_line(place: Path) -> Iterator[None]:
    """The errors of Transformers as one of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:300]
        valid = "a causal LM that Transformers knows by itself, with a readable config.json"
        raise ValueError(f"model.path={place}: cannot be loaded ({why}); valid: {valid}") from None


def _is_local(source: str, path: str) -> bool:
    """Hub ids have one slash at most and never start like a path."""
    return source == "checkpoint" or path.startswith((".", "/", "~")) or path.count("/") > 1 or folder_of(path).exists()
