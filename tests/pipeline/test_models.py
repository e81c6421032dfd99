import json
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from pipeline import ROOT, corpus, models, shapes, tasks
from pipeline.config import Model

SMALL = {
    "_target_": "transformers.GPT2Config", "vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2,
}  # fmt: skip


def spec(**fields) -> Model:
    known = {"name": "small", "title": "", "source": "random", "path": None, "max_seq_len": None, "hard_limit": False}
    return Model.model_validate({**known, "config": SMALL, **fields})


def conf(name: str) -> Model:
    return Model.model_validate(OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/model/{name}.yaml")))


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def tiny() -> models.LoadedModel:
    return models.load(conf("tiny"), "float32", "cpu", seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_random_weights_and_another_does_not(dtype):
    first, same, other = (weights_of(models.load(spec(), dtype, "cpu", seed).model) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    assert {weight.dtype for weight in first.values()} == {getattr(torch, dtype)}


def test_random_weights_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models.load(spec(), "float32", "cpu", 1)
    assert torch.equal(torch.rand(1), expected)


def test_random_weights_have_the_deviation_of_the_shape_and_neutral_norms():
    for name, weight in weights_of(models.load(spec(), "float32", "cpu", 0).model).items():
        if weight.dim() == 2:
            assert weight.std() == pytest.approx(0.02, rel=0.1), name
        else:
            assert weight.unique().tolist() == ([1.0] if name.endswith("weight") else [0.0]), name


def test_a_random_model_is_ready_to_answer():
    loaded = models.load(spec(), "float32", "cpu", 0)
    assert not loaded.model.training and loaded.model.config._attn_implementation == "sdpa"
    assert torch.isfinite(loaded.model(torch.arange(10)[None]).logits).all()
    assert loaded.weights_sha256 is None


@pytest.mark.parametrize("source", ["checkpoint", "random"])
def test_an_outline_has_the_shapes_of_the_loaded_model_and_takes_no_memory(source, tiny):
    known = conf("tiny") if source == "checkpoint" else spec()
    outlined, loaded = models.outline(known, "bfloat16"), models.load(known, "bfloat16", "cpu", 0).model
    for one, other in zip(outlined.parameters(), loaded.parameters(), strict=True):
        assert one.is_meta and (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [("gpt2", 124_439_808), ("gpt2_large", 774_030_080), ("llama_3_1_8b", 8_030_261_248), ("qwen3_8b", 8_190_735_360)],
)
def test_published_shapes_have_the_published_number_of_parameters(name, n_parameters):
    model = models.outline(conf(name), "bfloat16")
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_the_committed_weights_are_those_that_the_training_wrote(tiny):
    story = json.loads((ROOT / "models/tiny/training.json").read_text())
    assert tiny.weights_sha256 == story["weights_sha256"] and len(story["corpus_sha256"]) == 64
    assert tiny.model.config.vocab_size == tasks.VOCAB_SIZE
    assert 250_000 < sum(weight.numel() for weight in tiny.model.parameters()) < 500_000
    assert (tiny.model.config.num_hidden_layers, tiny.model.config.head_dim) == (4, 32)
    assert tiny.model.config.num_key_value_heads < tiny.model.config.num_attention_heads


def test_the_committed_model_finds_a_needle_in_512_tokens(tiny):
    assert tiny.tokenizer_path is not None
    text = corpus.held_out_tokens(tiny.tokenizer_path)
    items = tasks.recall_items("single_needle", 512, 20, seed=1, text=text)
    with torch.inference_mode():
        logits = tiny.model(torch.cat([items.context, items.question], dim=1), logits_to_keep=1).logits[:, -1]
    assert (logits.argmax(-1) == items.answer[:, -1]).float().mean() >= 0.9


def test_a_checkpoint_folder_given_as_hub_path_loads_without_a_network(tiny):
    loaded = models.load(conf("hub").model_copy(update={"path": str(ROOT / "models/tiny")}), "float32", "cpu", 0)
    first, second = weights_of(loaded.model), weights_of(tiny.model)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("source", ["checkpoint", "hub"])
def test_pickled_weights_are_refused(tmp_path, source):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model.path=.*only pickled weights \(pytorch_model.bin\).*; valid: "):
        models.check(spec(source=source, path=str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "checkpoint", "path": "models/nowhere"}, r"model.path=.*models/nowhere: no such folder; valid: "),
        ({"source": "hub", "path": "./models/nowhere"}, r"model.path=.*models/nowhere: no such folder; valid: "),
        ({"source": "checkpoint", "path": "conf"}, r"model.path=.*conf: no weights; valid: "),
        ({"source": "hub"}, r"model.path=null: source=hub needs one; valid: "),
        ({"config": None}, r"model.config=None: no shape for random weights; valid: "),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as refusal:
        models.check(spec(**fields))
    assert "\n" not in str(refusal.value)


def test_remote_code_is_refused(tmp_path, tiny):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    automatic = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(automatic))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own = spec(source="hub", path=str(tmp_path))
    for refused in (lambda: models.load(own, "float32", "cpu", 0), lambda: models.outline(own, "float32")):
        with pytest.raises(ValueError, match=r"model\.path=.*; valid: "):
            refused()
    assert not (tmp_path / "ran").exists()


def test_unknown_fields_of_a_shape_and_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"model.config of small: .*; valid: "):
        shapes.config_of(spec(config={"_target_": "transformers.NoSuchConfig"}))
    with pytest.raises(ValueError, match=r"dtype=int8: unknown; valid: float32"):
        models.load(spec(), "int8", "cpu", 0)


def test_the_cheap_check_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from types import SimpleNamespace; from pipeline import models;"
        "models.check(SimpleNamespace(source='checkpoint', path='models/tiny', config=None, revision=None));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    read: list[str] = []
    really = models._read_sha256
    monkeypatch.setattr(models, "_read_sha256", lambda path: read.append(path.name) or really(path))
    file.write_bytes(b"one")
    fresh = [models.file_sha256(file) for _ in range(2)]
    assert len(read) == 2  # it may still change within the clock's resolution
    os.utime(file, (1, 1))
    old = [models.file_sha256(file) for _ in range(3)]
    assert len(read) == 3 and set(old) == set(fresh)
    file.write_bytes(b"two")
    os.utime(file, (2, 2))
    assert models.file_sha256(file) not in fresh
