"""All of a small plan, twice, and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.serving import results
from pipeline.serving.__main__ import main
from pipeline.serving.computed import Simulation
from pipeline.serving.results import Serving
from tests.pipeline.serving.plans import SMALL, small

# Two layers, a vocabulary of nothing and little room, but the real techniques.
TINY = (
    *SMALL,
    "model=bench_gqa",
    "model.config.num_hidden_layers=2",
    "model.config.vocab_size=64",
    "dtype=float32",
    "gpu_gb=0.075",
    "max_len=512",
    "block_sizes=[1,16,64]",
    "techniques={arrivals_per_step: 1, seq_len: [368, 688], n_layers: 2}",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    assert main([*TINY, f"results_dir={folder}"]) == 0
    return folder


def read(folder: Path) -> Serving:
    found = results.read(folder)
    assert found is not None
    return found


@pytest.mark.slow
def test_the_same_plan_writes_the_same_file(written: Path, tmp_path: Path) -> None:
    assert main([*TINY, f"results_dir={tmp_path}"]) == 0
    assert (tmp_path / results.FILE).read_bytes() == (written / results.FILE).read_bytes()


@pytest.mark.slow
def test_every_technique_of_ours_is_served_or_has_a_reason(written: Path) -> None:
    found = read(written)
    named = [name for of in (*found.techniques, *found.unsized) for name in of.techniques]
    takes_axes = [
        file.stem for file in (ROOT / "conf" / "strategy").glob("*.yaml") if "  - scorer: " in file.read_text()
    ]
    assert sorted(named) == sorted(takes_axes)


@pytest.mark.slow
def test_every_simulation_has_the_same_memory(written: Path) -> None:
    found = read(written)
    for of in (*found.policies, *found.block_sizes):
        assert 0 <= found.room_bytes - of.served.n_slots * 4096 < 64 * 4096  # less than the largest block is left over
    for technique in found.techniques:
        taken = technique.served.n_slots * technique.size.slot_bytes
        assert 0 <= found.room_bytes - taken < 16 * technique.size.slot_bytes
    served = {of.policy: of.served for of in found.policies}
    assert served["paged"] == found.block_sizes[1].served


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gpu_gb=10", "gpu_gb=10: the weights of llama_3_1_8b alone take 16.1 GB; valid: more"),
        ("gpu_gb=16.2", "request=0: its 676 tokens take 2048 slots, and memory has 1064; valid: "),
        ("block_size=100000", "block_size=100000: memory has room for 60573 tokens; valid: a block that fits in"),
        ("block_size=0", "block_size=0: not possible; valid: greater than 0"),
        ("model=mamba", "model=mamba: its cache does not grow with every token; valid: "),
        ("bloc_size=1", "bloc_size: no such option; see --help; did you mean block_size?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([override, f"results_dir={tmp_path}"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(said) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_pool_is_as_large_as_the_room() -> None:
    simulation = Simulation(small(), room_bytes=1000, bytes_per_token=3)
    assert simulation.paged(simulation.full, 16).blocks.n_blocks == 20
    with pytest.raises(ValueError, match="block_size=400: memory has room for 333 tokens; valid"):
        simulation.paged(simulation.full, 400)


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    assert results.read(tmp_path) is None
    (tmp_path / results.FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"corrupt .*serving\.json"):
        results.read(tmp_path)
