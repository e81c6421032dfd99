"""A model of the hub as a local folder of one commit: from there on it is checked and loaded like any other folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pipeline.folders import CONFIG

# No pickle and no code is ever fetched; `consolidated` are the same weights once more, for other programs.
WANTED = ["*.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"]
UNWANTED = ["*/*", "consolidated*"]


@cache
def snapshot(model_id: str, revision: str | None) -> Path:
    """The folder of that commit, named after it, downloaded where it is not yet in the hub's own cache.

    Asked once per process, so that a name means one commit in all cells of a grid. Raises ValueError, one line.
    """
    return _snapshot(model_id, revision, WANTED)


@cache
def config(model_id: str, revision: str | None) -> Path:
    """The folder of that commit with its configuration alone; otherwise as `snapshot`."""
    return _snapshot(model_id, revision, [CONFIG])


def _snapshot(model_id: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted, ignore_patterns=UNWANTED))
    except Exception as error:  # the network has more ways to fail than one library has classes
        raise ValueError(_one_line(model_id, revision, error)) from None


def _one_line(model_id: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"model.revision={revision}: {model_id} has no such revision; valid: a branch, a tag or a commit"
    reasons: list[tuple[type[Exception], str, str]] = [
        (errors.GatedRepoError, "its owner grants access", "accept the terms on its page and run `hf auth login`"),
        (errors.RepositoryNotFoundError, "not on the hub, or private", "an id as on its page, or `hf auth login`"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached, and its cache does not hold the whole model",
         "a folder, or a network"),
    ]  # fmt: skip
    at = "" if revision is None else f" model.revision={revision}"
    for kind, why, valid in reasons:
        if isinstance(error, kind):
            return f"model.path={model_id}{at}: {why}; valid: {valid}"
    why = " ".join(str(error).split())[:300]
    return f"model.path={model_id}{at}: {why}; valid: a folder, or the id of a model on the hub"
