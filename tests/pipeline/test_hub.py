"""Any causal LM in safetensors, from a folder or the hub's cache: measured, or refused in one line before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING

from pipeline import hub, models, record, text
from pipeline.record import Record
from tests.pipeline import checkpoints

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SINKS = ("strategy=attention_sink", "model=hub", "profile=smoke", "profile.n_threads=1", "tracking=disabled")
SHORT = (*SINKS, "workload.seq_len=256", "workload.n_items=2")
COST = (*SINKS, "workload=cost", "workload.seq_len=64")


@pytest.fixture
def llama(tmp_path) -> Path:
    return checkpoints.save("llama", tmp_path / "org" / "my.llama")


@pytest.fixture
def records(tmp_path):
    return lambda: record.read_all(tmp_path / "results")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub that cannot be reached, and its cache on disk: the files of a commit, and names that point to it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.snapshot.cache_clear()

    def make(name: str, *refs: str) -> Path:
        home = tmp_path / "hub" / f"models--org--{name}"
        (home / "refs").mkdir(parents=True)
        for ref in refs:
            (home / "refs" / ref).write_text(COMMIT)
        return checkpoints.save("llama", home / "snapshots" / COMMIT)

    yield make
    hub.snapshot.cache_clear()


def bare(folder: Path, family: str, **config: Any) -> Path:
    """A folder that says what it is and holds no weights: enough where nothing is loaded."""
    CONFIG_MAPPING[family](**config).save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return folder


def assert_whole(measured: Record) -> None:
    assert measured.status == "ok", measured.reason
    assert measured.cost is not None and measured.quality is not None and measured.quality.text is not None
    assert len({(task.task, task.protocol) for task in measured.quality.tasks}) == 12
    assert measured.quality.text_source == text.DEFAULT_SOURCE


def assert_refused(outcome, *named: str) -> None:
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1, outcome.err
    for part in named:
        assert part in outcome.err
    assert "; valid: " in outcome.err


def test_a_folder_is_measured_by_the_command_that_the_readme_shows(main, records, llama):
    assert main(*SINKS, f"model.path={llama}").code == 0
    assert [item.cell.seq_len for item in records()] == [256, 384]
    for item in records():
        assert_whole(item)


@pytest.mark.parametrize("family", sorted(set(checkpoints.FAMILIES) - {"llama", "gemma3_text"}))
def test_every_family_is_measured_for_cost_and_quality(main, records, tmp_path, family):
    assert main(*SHORT, f"model.path={checkpoints.save(family, tmp_path / family)}").code == 0
    (measured,) = records()
    assert_whole(measured)


def test_mixed_layers_with_two_rotations_take_every_technique_that_moves_no_keys(main, records, tmp_path):
    folder = checkpoints.save("gemma3_text", tmp_path / "gemma3")
    assert_refused(main(*SHORT, f"model.path={folder}"), "model=Gemma3ForCausalLM: rope_type=")
    assert main(*SHORT, "strategy=sliding_window", f"model.path={folder}").code == 0
    (measured,) = records()
    assert_whole(measured)


def test_shards_are_the_same_model_as_one_file(tmp_path, experiment):
    one, sharded = (
        checkpoints.save("llama", tmp_path / name, max_shard_size=size) for name, size in (("a", "1GB"), ("b", "100KB"))
    )
    assert len(list(sharded.glob("*.safetensors"))) > 1
    weights = [
        dict(models.load(experiment("model=hub", f"model.path={folder}").model, "float32", "cpu", 0).model.state_dict())
        for folder in (one, sharded)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])


def test_records_go_by_the_last_two_parts_of_the_path_and_pin_every_file(main, records, llama):
    main(*COST, f"model.path={llama}")
    (measured,) = records()
    assert measured.cell.model == "org--my.llama"
    files = measured.environment["model"]["files"]
    assert files == {
        name: models.file_sha256(llama / name) for name in ("model.safetensors", "config.json", "tokenizer.json")
    }


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["model=hub", "model.path=org/name"], "org--name"),
        (["model=hub", "model.path=org/name", "model.revision=v1/x"], "org--name@v1-x"),
        (["model=gpt2", "model.source=hub"], "openai-community--gpt2"),
        (["model=gpt2"], "gpt2"),
    ],
)
def test_what_records_are_called_says_whose_weights_they_are(experiment, overrides, label):
    (cell,) = experiment(*overrides, "workload=cost", "workload.seq_len=64").cells()
    assert cell.model == label


def test_another_file_is_another_measurement(main, llama):
    command = (*COST, f"model.path={llama}")
    main(*command)
    assert "already measured" in main(*command).err
    weights = load_file(llama / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, llama / "model.safetensors", {"format": "pt"})
    assert "already measured" not in main(*command).err


def test_a_model_of_the_hubs_cache_is_pinned_to_its_commit_without_a_network(main, records, cached):
    cached("llama", "main", "v1")
    assert main(*COST, "model.path=org/llama").code == 0
    assert main(*COST, "model.path=org/llama", "model.revision=v1").code == 0
    assert {item.cell.model for item in records()} == {"org--llama", "org--llama@v1"}
    for item in records():
        assert item.environment["model"] == {"path": "org/llama", "revision": COMMIT}


def test_a_branch_that_moved_is_another_measurement(main, cached):
    first = cached("moving", "main")
    main(*COST, "model.path=org/moving")
    hub.snapshot.cache_clear()
    assert "already measured" in main(*COST, "model.path=org/moving").err
    (first.parent / COMMIT[::-1]).mkdir()
    for file in first.iterdir():
        file.rename(first.parent / COMMIT[::-1] / file.name)
    (first.parent.parent / "refs" / "main").write_text(COMMIT[::-1])
    hub.snapshot.cache_clear()
    assert "already measured" not in main(*COST, "model.path=org/moving").err


def test_what_the_hub_does_not_give_is_refused_in_one_line(main, cached):
    cached("llama", "main")
    assert_refused(main(*COST, "model.path=org/unknown"), "model.path=org/unknown: the hub cannot be reached")
    assert_refused(main(*COST, "model.path=org/llama", "model.revision=v9"), "model.path=org/llama model.revision=v9: ")


def test_a_half_cached_or_pickled_model_of_the_hub_is_refused(main, cached):
    folder = cached("half", "main")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_refused(main(*COST, "model.path=org/half"), "only pickled weights (pytorch_model.bin)")


def test_a_folder_has_no_revision(main, llama):
    assert_refused(main(*COST, f"model.path={llama}", "model.revision=main"), "model.revision=main: ")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def scramble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def lose_a_shard(folder: Path) -> None:
    next(folder.glob("*-00002-of-*")).unlink()


def swap_a_shard(folder: Path) -> None:
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    first.write_bytes(second.read_bytes())


def garble_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


def lose_the_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def pickle_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "cut": (cut, {}, "model.safetensors is not whole"),
    "scrambled": (scramble, {}, "model.safetensors is not whole"),
    "pickled": (pickle_the_weights, {}, "only pickled weights (pytorch_model.bin)"),
    "without configuration": (lose_the_configuration, {}, "no config.json"),
    "a shard lost": (lose_a_shard, {"max_shard_size": "100KB"}, "is missing, which model.safetensors.index.json names"),
    "a shard swapped": (swap_a_shard, {"max_shard_size": "100KB"}, "which model.safetensors.index.json promises"),
    "garbled index": (garble_the_index, {"max_shard_size": "100KB"}, "no readable weight_map"),
}


@pytest.mark.parametrize(("damage", "how", "named"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused_before_any_work(main, tmp_path, damage, how, named):
    folder = checkpoints.save("llama", tmp_path / "broken", **how)
    damage(folder)
    assert_refused(main(*COST, f"model.path={folder}"), f"model.path={folder}: ", named)


def test_a_missing_folder_is_refused(main, tmp_path):
    assert_refused(main(*COST, f"model.path={tmp_path / 'nowhere'}"), "no such folder")


REFUSED = {
    "falcon": ({}, "model=FalconForCausalLM: its attention cannot be replaced"),
    "gpt_oss": ({}, "model=GptOssForCausalLM: GptOssAttention: attention with s_aux is not supported"),
    "llama4_text": ({}, "model=Llama4ForCausalLM: layers of kind"),
    "deepseek_v3": ({}, "DeepseekV3Attention: keys of 192 and values of 128 dimensions are not supported"),
    "mamba": ({}, "model=MambaForCausalLM: "),
    "bert": ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a causal language model"),
    "t5": ({}, "T5Config is not a causal language model"),
    "bart": ({}, "BartForCausalLM is not a causal language model"),
    "gemma3": ({}, "is a language model inside a larger one"),
    "llama": ({"architectures": ["LlamaForSequenceClassification"]}, "is not a causal language model"),
    "qwen3": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantised (gptq)"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name_before_any_work(main, tmp_path, family):
    config, named = REFUSED[family]
    assert_refused(main(*COST, f"model.path={bare(tmp_path / family, family, **config)}"), named)


def test_weights_that_transformers_would_make_up_are_refused(llama, experiment):
    weights = load_file(llama / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    del weights[lost]
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 weights of LlamaForCausalLM are missing .*\({lost}\); valid: "):
        models.load(experiment("model=hub", f"model.path={llama}").model, "float32", "cpu", 0)


def test_without_a_tokenizer_there_is_cost_and_no_quality(main, records, llama):
    (llama / "tokenizer.json").unlink()
    assert_refused(main(*SHORT, f"model.path={llama}"), "has no tokenizer.json", "workload=cost")
    assert main(*COST, f"model.path={llama}").code == 0
    assert [item.status for item in records()] == ["ok"]


def test_a_tokenizer_of_another_model_is_refused(main, llama):
    config = json.loads((llama / "config.json").read_text()) | {"vocab_size": 1000}
    (llama / "config.json").write_text(json.dumps(config))
    assert_refused(main(*SHORT, f"model.path={llama}"), "tokenizer.json gives ids up to", "the model knows 1000")


def test_a_length_that_does_not_hold_the_words_is_refused_before_any_work(main, llama):
    refusal = main(*SINKS, f"model.path={llama}", "workload.seq_len=128")
    assert_refused(refusal, "workload.seq_len=128: too short for multi_key_32 in words", "workload.tasks")


def test_questions_in_words_need_their_positions_too(main, tmp_path):
    """GPT-2 looks its 512 positions up; a question of eight keys takes 40 tokens, and is asked again."""
    folder = checkpoints.save("gpt2", tmp_path / "gpt2")
    asked = (*SINKS, f"model.path={folder}", "workload=quality", "workload.tasks=[multi_query]")
    assert_refused(main(*asked, "workload.seq_len=473"), "only 512 positions; valid: at most 472")
