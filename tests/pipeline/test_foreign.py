"""A technique that needs what is not here is a row with its reason, and no failure."""

from __future__ import annotations

import pytest

from pipeline import grid, record
from tests.conftest import SMALL


@pytest.mark.parametrize(
    ("technique", "reason", "remedy"),
    [
        ("kvpress", "needs transformers<5.3, this is 5", "a release that allows it"),
        ("hf_offloaded", "moves layers between a CUDA device and the host", "device=cuda"),
    ],
)
def test_what_is_not_here_is_a_skipped_row_with_its_remedy(main, tmp_path, technique, reason, remedy):
    outcome = main(*SMALL, f"strategy={technique}", "workload.seq_len=96", "device=cpu")
    assert outcome.code == 0
    (path,) = tmp_path.glob(f"results/token/{technique}/*/*.json")
    written = record.read(path)
    assert written.status == "skipped" and written.cost is None
    assert reason in written.reason and written.remedy.endswith(remedy)
    assert written.reason in " ".join((outcome.out + outcome.err).split())


def test_a_module_of_our_own_that_is_missing_is_a_failure():
    assert grid._needs_what_is_not_here(ModuleNotFoundError("No module named 'einops'", name="einops"))
    assert grid._needs_what_is_not_here(NotImplementedError("no kernel"))
    assert not grid._needs_what_is_not_here(ModuleNotFoundError("No module named 'x'", name="strategies.token.x"))
    assert not grid._needs_what_is_not_here(ValueError("no"))


def test_a_package_that_says_no_remedy_is_to_be_installed():
    error = ModuleNotFoundError("No module named 'einops'", name="einops")
    assert grid._told(error) == (
        "No module named 'einops'",
        "pip install einops",
    )


def test_the_cost_of_a_cache_of_another_package_is_measured_beside_ours(main, tmp_path):
    assert main(*SMALL, "strategy=hf_sliding", "workload.seq_len=96").code == 0
    (path,) = tmp_path.glob("results/token/hf_sliding/*/*.json")
    cost = record.read(path).cost
    assert cost is not None
    assert cost.technique.kv_bytes_held[0] > cost.technique.kv_bytes_held[-1]  # the prompt first, then a window
    assert cost.technique.kv_bytes_logical < cost.full.kv_bytes_logical / 3
