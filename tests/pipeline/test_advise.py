"""The advisor: what fits is counted, what was measured is told from what is extrapolated, bad input is one line."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline import ROOT
from pipeline.advise.__main__ import main
from pipeline.memory.calculator import calculate
from pipeline.memory.question import asked
from pipeline.record import Record
from tests.pipeline.report import factory
from tests.pipeline.small import composed

GIVEN = ["model=bench", "model.config.num_hidden_layers=2", "seq_len=256", "batch=2", "dtype=fp32"]
BENCH = [*GIVEN, "memory_gb=1"]  # measured for cost, not for quality
Captured = pytest.CaptureFixture[str]


@cache
def configured(strategy: str) -> Any:
    return OmegaConf.to_container(composed(f"strategy={strategy}").strategy, resolve=True)


def real(record: Record) -> Record:
    """With the technique as its file configures it, so that its cache can be built."""
    return record.model_copy(update={"config": record.config | {"strategy": configured(record.cell.strategy)}})


def both(name: str, ratio: float = 0.9, loss: float = 0.0) -> list[Record]:
    return [real(factory.timed(name, 1024, ratio)), real(factory.judged(name, 512, loss))]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by all and changed by none: each technique is composed to be made."""
    made = [*both("tova", 0.6, loss=0.3), *both("kv_int8", 0.95), *both("kv_int4", 1.2), *both("offload", 1.0)]
    return factory.store([*made, *both("oracle", 0.3)], tmp_path_factory.mktemp("results"))


def answer(results: Path, capsys: Captured, *options: str) -> tuple[list[str], str]:
    """The techniques of the table in its order, and all that is printed."""
    assert main([*BENCH, *options, f"results_dir={results}"]) == 0
    text = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    lines = text.splitlines()
    below = lines[next(n for n, line in enumerate(lines) if "───" in line) + 1 :]
    return [line.split()[0] for line in itertools.takewhile(str.strip, below)], text


def test_quality_is_unknown_until_it_is_said_whose_is_taken(records: Path, capsys: Captured) -> None:
    ranked, text = answer(records, capsys, "min_quality=0.98")
    assert ranked == ["tova", "kv_int8", "kv_int4"]  # by speed, whatever they lose
    assert "Quality: unknown for bench" in text and "min_quality=0.98 is not applied" in text
    assert "quality_from=tiny" in text and "unknown" in next(line for line in text.splitlines() if " tova" in line)


def test_quality_that_is_taken_over_rules_out_and_is_called_extrapolated(records: Path, capsys: Captured) -> None:
    ranked, text = answer(records, capsys, "min_quality=0.98", "quality_from=tiny")
    assert ranked == ["kv_int8", "kv_int4"]
    assert "Quality: measured on tiny" in text and "query-agnostic" in text
    assert "for bench it is extrapolated, because quality_from=tiny says so" in text
    assert "tova keeps 70.0 % of recall" in text


def test_the_objective_decides_the_order(records: Path, capsys: Captured) -> None:
    orders = {
        name: answer(records, capsys, f"objective={name}", "quality_from=tiny")[0]
        for name in ("speed", "memory", "quality")
    }
    assert orders["speed"] == ["tova", "kv_int8", "kv_int4"]
    assert orders["memory"][-1] == "kv_int8" and orders["quality"][-1] == "tova"


def test_controls_and_what_lies_on_the_host_are_not_ranked(records: Path, capsys: Captured) -> None:
    ranked, text = answer(records, capsys)
    assert not {"oracle", "offload"} & set(ranked)
    assert "Not ranked: offload" in text and "oracle" not in text


def test_a_technique_made_slow_moves_down_and_says_so(tmp_path: Path, capsys: Captured) -> None:
    factory.store([*both("tova", 1.5), *both("kv_int8", 0.95)], tmp_path)
    ranked, text = answer(tmp_path, capsys)
    assert ranked == ["kv_int8", "tova"]
    assert "slower" in next(line for line in text.splitlines() if line.startswith(" tova"))


def test_what_fits_is_what_the_memory_calculator_says(records: Path, capsys: Captured) -> None:
    counted = {name: calculate(asked([*GIVEN, f"strategy={name}"])) for name in ("tova", "kv_int8", "kv_int4")}
    held = {name: found.answers[0].of_batch(2).held for name, found in counted.items()}
    weight_bytes = counted["tova"].weight_bytes
    just = (weight_bytes + held["kv_int8"] + 1) / 1e9  # a byte more than needed, which rounding may take
    fits = sorted(name for name, taken in held.items() if taken <= held["kv_int8"])
    assert sorted(answer(records, capsys, f"memory_gb={just:.9f}")[0]) == fits and "kv_int8" in fits
    ranked, text = answer(records, capsys, f"memory_gb={just - 1e-6:.9f}")
    assert "kv_int8" not in ranked and "kv_int8 holds" in text and "does not fit" in text
    assert main([*BENCH, f"memory_gb={(weight_bytes + 1000) / 1e9:.9f}", f"results_dir={records}"]) == 0
    assert "No technique qualifies" in capsys.readouterr().out


def test_where_speed_was_measured_is_told_from_where_it_is_extrapolated(records: Path, capsys: Captured) -> None:
    _, text = answer(records, capsys)
    assert f"measured on bench, machine {factory.MACHINE}" in text and "1,024 × 1" in text
    assert "for bench at 256 tokens and batch 2 on another machine it is extrapolated" in text
    _, text = answer(records, capsys, "seq_len=1024", "batch=1")
    assert "extrapolated" not in text.partition("Decode step:")[2].partition("\n")[0]


def test_what_a_model_cannot_have_is_said(tmp_path: Path, capsys: Captured) -> None:
    broken = real(factory.timed("tova", 1024))
    broken.config["strategy"]["cache"]["_target_"] = "strategies.gone.Cache"
    factory.store([broken, *both("kv_int8")], tmp_path)
    ranked, text = answer(tmp_path, capsys)
    assert ranked == ["kv_int8"] and "Not counted: tova (" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model=nothing"], "model=nothing: not found"),
        (["min_qualty=0.9"], "did you mean min_quality"),
        (["min_quality=1.5"], "min_quality=1.5"),
        (["min_quality=-0.1"], "min_quality=-0.1"),
        (["memory_gb=0.1"], "memory_gb=0.1: the weights of bench alone take 0.3"),
        (["memory_gb=0"], "memory_gb=0"),
        (["seq_len=0"], "seq_len=0"),
        (["objective=cheap"], "objective=cheap"),
        (["objective=quality"], "objective=quality: unknown for bench"),
        (["quality_from=gpt2"], "quality_from=gpt2: its quality was not measured; valid: tiny"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(records: Path, options: list[str], said: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*BENCH, f"results_dir={records}", *options])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and said in lines[0], lines


def test_a_length_without_positions_is_refused(records: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["model=gpt2", "seq_len=2048", f"results_dir={records}"])
    assert stopped.value.code == 2 and "gpt2 has only 1024 positions" in capsys.readouterr().err


def test_no_records_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    for made, said in (([], "no records in it"), ([factory.judged("tova")], "no technique was timed")):
        factory.store(made, tmp_path)
        with pytest.raises(SystemExit) as stopped:
            main([*BENCH, f"results_dir={tmp_path}"])
        assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.advise.__main__ import main; main(['--help'])\n"
        "sys.exit(', '.join({'torch', 'transformers', 'matplotlib'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "python -m pipeline.advise model=" in done.stdout, done.stderr
