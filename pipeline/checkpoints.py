"""What lies in a trained model's folder, where it came from, and whether it still is what it says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import fingerprint, models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.recipe import Training

STORY = "training.json"
TRAINS = ("pipeline.trainer", "pipeline.corpus", "pipeline.shapes")  # with all that these import
# Values enter by themselves, and what decoding holds has no part in training.
NO_PART = ("pipeline.recipe", "strategies.model.sparse_cache")
TRAINED, NOT_TRAINED = "trained", "not trained within budget"


def inputs(training: Training) -> str:
    """Hash of what the weights are made of: code without comments and docstrings, recipe, shape, seed, threads."""
    asked = training.model_dump(include={"recipe": True, "model": {"config"}, "seed": True, "n_threads": True})
    code = [*TRAINS, *fingerprint.targets(asked["model"])]
    parts: dict[str, Any] = {"asked": asked}
    if (start := training.recipe.starts_from) is not None:
        code += fingerprint.targets(start.convert)
        parts["start"] = models.file_sha256(folder_of(start.model) / models.WEIGHTS)
    parts["code"] = fingerprint.code_hashes(code, leave_out={*fingerprint.BY_VALUE, *NO_PART})
    return fingerprint.digest(parts)


def folder_of(name: str) -> Path:
    """Of the checkpoint of one of conf/model."""
    return models.folder_of(f"models/{name}")


def story_in(folder: Path) -> dict[str, Any] | None:
    """None where nothing was trained."""
    path = folder / STORY
    return json.loads(path.read_text()) if path.is_file() else None


def is_up_to_date(training: Training) -> bool:
    """What is there is what this very training wrote, be it weights or the word that there are none."""
    folder = models.folder_of(training.model.path or "")
    story = story_in(folder)
    if story is None or story.get("inputs") != inputs(training):
        return False
    weights = folder / models.WEIGHTS
    if story["outcome"] == NOT_TRAINED:
        return not weights.is_file()
    return weights.is_file() and story["weights_sha256"] == models.file_sha256(weights)


def check(spec: models.Spec) -> None:
    """Raises ValueError for a checkpoint of ours whose weights or shape are not those that were trained for `spec`."""
    story = story_in(models.folder_of(spec.path or "")) if spec.source == "checkpoint" else None
    if story is None:
        return
    place, again = f"model.path={spec.path}", f"valid: what `python -m pipeline.train model={spec.name}` writes"
    if story["outcome"] == NOT_TRAINED:
        raise ValueError(f"{place}: {NOT_TRAINED}, so it has no weights; valid: model.source=random workload=cost")
    if story["config"] != spec.config:
        raise ValueError(f"{place}: was trained with another model.config than this one; {again}")
    if story["weights_sha256"] != models.file_sha256(models.folder_of(spec.path or "") / models.WEIGHTS):
        raise ValueError(f"{place}: {models.WEIGHTS} is not what {STORY} says was trained; {again}")


def save(model: PreTrainedModel | None, tokenizer: str, story: dict[str, Any], folder: Path) -> None:
    """Write the whole checkpoint beside `folder`, then put it in its place: never half of one and half of another.

    `model` None: only the story, of a training that did not end in one.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    if model is not None:
        with models.quiet():
            model.save_pretrained(partial)
        (partial / models.WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
        (partial / "tokenizer.json").write_text(tokenizer)
        story = {**story, "weights_sha256": models.file_sha256(partial / models.WEIGHTS)}
    (partial / STORY).write_text(json.dumps(story, indent=1) + "\n")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
