"""The committed checkpoints are what this code trains, and what is not is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline import ROOT, checkpoints, models, train
from pipeline.checkpoints import NOT_TRAINED
from pipeline.config import Model
from pipeline.refusals import CONF

RECIPES = {"train": "tiny", "architectures": "architecture", "uptraining": "uptraining"}
REFERENCE = "mha"
PARAMETERS_WITHIN = 0.05


def trained_by_a_stage() -> Iterator[tuple[str, str]]:
    for stage, recipe in RECIPES.items():
        for out in OmegaConf.load(ROOT / "dvc.yaml").stages[stage].outs:
            yield recipe, Path(next(iter(out))).name


def spec(name: str) -> Model:
    return Model.model_validate(OmegaConf.to_container(OmegaConf.load(CONF / f"model/{name}.yaml")))


def story(name: str) -> dict:
    found = checkpoints.story_in(ROOT / "models" / name)
    assert found is not None, f"{name} was never trained"
    return found


@pytest.mark.parametrize(("recipe", "name"), trained_by_a_stage())
def test_a_committed_checkpoint_is_what_this_code_trains(recipe, name):
    """Other code or another recipe needs other checkpoints: dvc repro architectures"""
    assert checkpoints.is_up_to_date(train.configured([f"recipe={recipe}", f"model={name}"]))
    assert (spec(name).source == "random") == (story(name)["outcome"] == NOT_TRAINED)


def test_all_architectures_saw_the_same_tokens_at_the_same_size():
    """Those that were converted keep what the conversion took from them."""
    architectures = [name for recipe, name in trained_by_a_stage() if recipe == "architecture"]
    reference = story(REFERENCE)
    for found in map(story, architectures):
        assert abs(found["n_parameters"] / reference["n_parameters"] - 1) < PARAMETERS_WITHIN
        if found["outcome"] != NOT_TRAINED:
            assert found["n_tokens"] == reference["n_tokens"] and found["recipe"] == reference["recipe"]


@pytest.mark.parametrize("name", [name for recipe, name in trained_by_a_stage() if recipe == "architecture"])
def test_words_are_what_the_head_says_of_the_last_hidden_state(name):
    """The trainer asks the head itself, and only where a word is wanted."""
    from pipeline.shapes import config_of, random_model

    model, ids = random_model(config_of(spec(name)), torch.float32, "cpu", 0).eval(), torch.randint(0, 1282, (2, 40))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        said = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(model.get_output_embeddings()(hidden), said)


def copy_of(name: str, folder: Path) -> Model:
    shutil.copytree(ROOT / "models" / name, folder)
    return spec(name).model_copy(update={"path": str(folder)})


def test_a_checkpoint_that_is_what_its_story_says_is_taken(tmp_path):
    checkpoints.check(copy_of("tiny", tmp_path / "tiny"))


def test_weights_of_another_training_are_refused(tmp_path):
    copied = copy_of("tiny", tmp_path / "tiny")
    with (tmp_path / "tiny" / models.WEIGHTS).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match=r"model.path=.*: model.safetensors is not what training.json says was train"):
        checkpoints.check(copied)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    copied = copy_of("tiny", tmp_path / "tiny")
    other = copied.model_copy(update={"config": {**(copied.config or {}), "num_key_value_heads": 4}})
    with pytest.raises(ValueError, match=r"model.path=.*: was trained with another model.config than this one; valid"):
        checkpoints.check(other)


def test_several_models_are_trained_side_by_side_and_one_that_fails_is_told(capfd):
    assert train.split(["seed=1", "model=mha,gqa"]) == [["seed=1", "model=mha"], ["seed=1", "model=gqa"]]
    assert train.main(["model=tiny,tiny"]) == 0
    assert capfd.readouterr().out == 2 * "models/tiny is up to date\n"
    asked = "recipe.phases=[{seq_len: 64, n_steps: 1, batch: 2, gaps: 0, asked_twice: 0, ends_when_formed: false,"
    asked += " mixture: {repeats: 1.0}}]"
    code = train.main([asked, "model=gqa,mha", "model.path=/proc/nowhere", "max_s=1e-9", "tracking=disabled"])
    said = capfd.readouterr().out
    assert code == 1 and "gqa: " in said and "mha: " in said
