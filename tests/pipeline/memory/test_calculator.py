"""The calculator says to the byte what caches hold that really exist, of every technique and kind of model."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from transformers import PreTrainedModel

from pipeline import ROOT, calibration
from pipeline.config import Model
from pipeline.decoding import Decoder
from pipeline.memory.__main__ import main
from pipeline.memory.calculator import Answer, Bytes, bytes_of, calculate
from pipeline.memory.question import asked
from pipeline.memory.tables import answers_by_one_layer
from pipeline.models import outlined
from pipeline.refusals import CONF
from pipeline.shapes import config_of, random_model
from pipeline.variants import takes_budget
from tests.pipeline.small import composed, tokens

ELSEWHERE = ("kvpress", "hf_quantized", "hf_offloaded")  # need packages or devices that may not be there
TECHNIQUES = sorted(file.stem for file in (CONF / "strategy").glob("*.yaml") if file.stem not in ELSEWHERE)
ARCHITECTURES = ("gqa", "mqa", "mla", "sliding", "local_global", "longformer", "bigbird", "strided", "dilated", "lsh",
                 "hybrid_ssm")  # fmt: skip
N_PROMPT, BUDGET, ROOM = 300, 160, 40
GIB = 2**30


@cache
def both(name: str) -> tuple[PreTrainedModel, PreTrainedModel, Model]:
    """A model, its outline, and where they are from."""
    spec = Model.model_validate(dict(composed(f"model={name}", "workload=cost").model))
    config = config_of(spec)
    return random_model(config, torch.float32, "cpu", seed=0).eval(), outlined(config, "float32"), spec


def real(build: Any, name: str, budget: int | None, batch: int) -> Bytes:
    model, _, spec = both(name)
    calibration.ensure(build, model, spec)
    with Decoder(model, build(model=model, kv_budget=budget, headroom=ROOM)) as decoder:
        ids = tokens(batch, N_PROMPT + 1)
        decoder.foresee(ids, N_PROMPT)
        decoder.feed(ids[:, :N_PROMPT])
        return Bytes(decoder.kv_bytes_logical, decoder.kv_bytes_held + decoder.kv_bytes_offloaded)


def calculated(build: Any, name: str, budget: int | None, batch: int) -> Bytes:
    _, outline, spec = both(name)
    one, two = (bytes_of(build, outline, spec, budget, N_PROMPT, n, ROOM) for n in (1, 2))
    return Answer(N_PROMPT, budget, one, two).of_batch(batch)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_holds_what_is_calculated(technique: str) -> None:
    strategy = composed(f"strategy={technique}").strategy
    build = instantiate(strategy.cache)
    budget = BUDGET if takes_budget(technique, strategy.get("schedule")) else None
    expected, found = real(build, "mha", budget, 3), calculated(build, "mha", budget, 3)
    if technique == "adakv":  # heads share their layer's tokens out by scores, which shapes do not have
        assert found.kept == pytest.approx(expected.kept, rel=0.02)
    else:
        assert found == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_holds_what_is_calculated(name: str) -> None:
    build = instantiate(composed("strategy=native").strategy.cache)
    assert calculated(build, name, None, 3) == real(build, name, None, 3)


def of_shape(*options: str) -> Answer:
    (answer,) = answers_by_one_layer(asked([*options, "dtype=fp16"]))
    return answer


def test_published_numbers() -> None:
    seven = of_shape("model=llama_2_7b", "strategy=native", "seq_len=4096")
    assert seven.one.kept == 2 * GIB == 4096 * 32 * 16 * 1024
    assert seven.of_batch(64).kept == 128 * GIB
    for n_kv_heads, gib in ((32, 4.0), (8, 1.0), (1, 0.125)):
        heads = f"model.config.num_key_value_heads={n_kv_heads}"
        assert of_shape("model=llama_3_1_8b", heads, "strategy=native", "seq_len=8192").one.kept == gib * GIB
    for name, per_token in (
        ("llama_2_70b", 320 * 1024), ("mixtral_8x7b", 128 * 1024), ("deepseek_v2", 576 * 60 * 2),
        ("deepseek_v3", 576 * 61 * 2), ("llama_2_70b_mha", 8 * 320 * 1024), ("llama_2_13b", 800 * 1024),
    ):  # fmt: skip
        assert of_shape(f"model={name}", "strategy=native", "seq_len=512").one.kept == 512 * per_token, name


def test_codes_count_with_their_scales() -> None:
    plain, int8, int4 = (
        of_shape("model=llama_2_7b", f"strategy={name}", "seq_len=4096").one.kept
        for name in ("native", "kv_int8", "kv_int4")
    )
    n_scales = 2 * 32 * 32 * 4096
    assert int8 == plain // 2 + 4 * n_scales
    assert int4 == plain // 4 + 4 * n_scales


def test_one_layer_many_times_is_the_whole_model() -> None:
    question = asked(["model=bench_gqa", "strategy=h2o_int4", "seq_len=1024"])
    assert answers_by_one_layer(question) == calculate(question).answers


def test_the_largest_batch_is_the_last_that_fits() -> None:
    answer = Answer(10, None, one=Bytes(70, 110), two=Bytes(140, 210))
    assert [answer.largest_batch(room) for room in (109, 110, 209, 210, 1010)] == [0, 1, 1, 2, 10]
    assert answer.of_batch(10).held == 1010
    nothing = Answer(10, None, one=Bytes(0, 0), two=Bytes(0, 0))
    assert nothing.largest_batch(5) is None and nothing.largest_batch(-5) == 0


def test_a_folder_needs_no_weights(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text((ROOT / "models/tiny/config.json").read_text())
    given = ["strategy=native", "seq_len=512"]
    assert calculate(asked(["model=hub", f"model.path={tmp_path}", *given])) == calculate(asked(["model=tiny", *given]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["dtype=int4"], "dtype=int4"),
        (["seq_len=0"], "seq_len=0"),
        (["seq_lem=4"], "did you mean seq_len"),
        (["strategy=nothing"], "strategy=nothing: not found"),
        (["strategy=full", "strategy.kv_budget=4"], "full never evicts"),
        (["strategy=sliding_window", "strategy.keep_ratio=0.001", "seq_len=100"], "keeps nothing"),
        (["model=gpt2", "seq_len=2048"], "only 1024 positions"),
        (["model=hub", "model.path=./nowhere"], "no such folder"),
        (["model=deepseek_v2", "model.config.num_hidden_layers=1", "strategy=kv_int8", "seq_len=64"], "not supported"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and said in lines[0]


def test_the_answer_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "strategy=native", "seq_len=[512,1024]", "batch=4", "dtype=fp32", "n_gpus=2"]) == 0
    shown = capsys.readouterr().out
    assert "tiny, native, float32, batch 4" in shown and "2 × 80 GB" in shown
    assert "4.00\N{NO-BREAK SPACE}MiB" in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.memory.__main__ import main; main(['--help'])\n"
        "sys.exit(', '.join({'torch', 'transformers'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "python -m pipeline.memory model=" in done.stdout, done.stderr
