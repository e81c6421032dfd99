"""Every file under conf/ is composed, every class it names exists, and the command it shows is accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from pipeline.advise import wish
from pipeline.config import AXES, Experiment
from pipeline.fingerprint import targets
from pipeline.memory import question
from pipeline.refusals import CONF

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [file for file in FILES if file.parent != CONF]
PRIMARY = [file for file in FILES if file.parent == CONF]


def name_of(file: Path) -> str:
    return str(file.relative_to(CONF).with_suffix(""))


def composed(config_name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, list(overrides), return_hydra_config=True)


def choose(file: Path) -> str:
    group = str(file.parent.relative_to(CONF))
    at = "@profile" if group == "profile/hardware" else ""
    return f"{group}{at}={file.stem}"


def is_run_by_its_command(file: Path) -> bool:
    """Whether the command in its first line composes it, so that nothing else has to."""
    return file.parent.name != "hardware" and file.read_text().startswith("# python -m pipeline.run ")


@pytest.mark.parametrize("file", [file for file in OPTIONS if not is_run_by_its_command(file)], ids=name_of)
def test_every_option_that_no_command_of_its_own_runs_composes(file):
    trains = file.parent.name == "recipe"
    chosen = composed(*(["train"] if trains else ["config", "profile=cpu"]), choose(file)).hydra.runtime.choices
    assert file.stem in chosen.values()


@pytest.mark.parametrize("file", PRIMARY, ids=name_of)
def test_every_primary_config_composes(file):
    assert composed(file.stem)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_named_class_exists(file):
    for target in targets(OmegaConf.to_container(OmegaConf.load(file))):
        assert callable(get_object(target)), target


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_command_in_the_first_line_is_accepted(file):
    shown = file.read_text().splitlines()[0]
    command = re.fullmatch(
        r"# python -m pipeline\.(run|train|ablations|engines|memory|memory\.tables|serving|advise|report)( .*)?", shown
    )
    assert command, "the first line shows a command that uses the file"
    arguments = [argument for argument in shlex.split(command[2] or "") if argument != "--multirun"]
    first_of_sweep = [re.sub(r"^([\w/.]+=[\w]+),.*", r"\1", argument) for argument in arguments]
    if command[1] == "run":
        with initialize_config_dir(str(CONF), version_base="1.3"):
            Experiment.from_hydra(compose("config", first_of_sweep))
    if command[1] == "memory":
        question.asked(arguments)
    if command[1] == "advise":
        wish.wish(arguments)
    if file in OPTIONS and file.parent.name != "hardware":
        assert choose(file) in first_of_sweep


WORKLOADS = ["standard", "quality", "cost", "batched"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_technique_fits_the_shortest_profile(experiment, workload):
    """Where budgets are smallest: what a scorer protects must leave room in them."""
    for file in (CONF / "strategy").glob("*.yaml"):
        experiment(f"strategy={file.stem}", "profile=smoke", f"workload={workload}")


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("profile", ["smoke", "cpu", "cuda", "full"])
def test_every_profile_fits_every_workload(experiment, profile, workload):
    this = experiment("strategy=snapkv", f"profile={profile}", f"workload={workload}")
    assert this.workload.n_text_tokens // 2 <= max(this.workload.seq_len)


def test_every_strategy_lists_its_cache_and_every_axis_that_it_takes():
    axes = {folder.name for folder in (CONF / "strategy").iterdir() if folder.is_dir()} - {"cache"}
    assert axes == set(AXES)
    for file in (CONF / "strategy").glob("*.yaml"):
        listed = dict(
            item for default in OmegaConf.load(file).defaults if default != "_self_" for item in default.items()
        )
        cache = OmegaConf.load(CONF / "strategy" / "cache" / f"{listed.pop('cache')}.yaml")
        assert set(listed) == axes & set(cache), file.name


def test_automatic_profile_follows_the_hardware(monkeypatch):
    for has_cuda, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("pipeline.hardware.has_cuda", lambda answer=has_cuda: answer)
        assert composed("config", "profile=auto").profile.name == name


def test_a_workload_chooses_its_model_and_the_command_line_wins():
    assert composed("config", "workload=cost").model.name == "bench"
    assert composed("config", "workload=cost", "model=gpt2").model.name == "gpt2"
    assert composed("config", "workload=quality").model.name == "tiny"


def test_slurm_launcher_keeps_the_plugin_and_adds_our_limits():
    launcher = composed("config", "hydra/launcher=slurm").hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.timeout_min > 0
