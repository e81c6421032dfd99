from collections.abc import Iterator

import pytest
import torch

from pipeline.memory import measured


def test_ceilings_are_measured_once_and_of_a_plausible_size() -> None:
    first = measured.measured_ceilings(torch.float32, "cpu")
    assert measured.measured_ceilings(torch.float32, "cpu") is first
    assert 1e8 < first.copy_bandwidth_bytes_per_s < 1e14
    assert 1e8 < first.matmul_flop_per_s < 1e16
    assert first.link_bandwidth_bytes_per_s is None  # what the host holds, this device has


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_copies_faster_than_the_host_can_send() -> None:
    found = measured.measured_ceilings(torch.bfloat16, "cuda")
    assert found.link_bandwidth_bytes_per_s is not None
    assert 1e9 < found.link_bandwidth_bytes_per_s < found.copy_bandwidth_bytes_per_s < 1e14


def test_what_the_allocator_keeps_unused_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 400)
    assert measured.available_bytes("cuda") == 1000 + 300


def test_peak_of_a_lap_counts_memory_that_was_given_back_before_its_end() -> None:
    size = 64 << 20

    def laps() -> Iterator[None]:
        torch.ones(size // 4).sum()
        yield
        held = torch.ones(size // 8)
        yield
        torch.ones(size // 16).add_(held.sum())
        yield

    found = [measured.peak_growths(laps(), "cpu") for _ in range(3)]
    for lap, expected in enumerate((size, size // 2, size // 2 + size // 4)):
        assert all(expected <= growths[lap] < 1.01 * expected for growths in found)
    assert found[0] == found[1] == found[2]


def test_what_was_there_before_the_first_lap_is_not_counted() -> None:
    before = [torch.ones(1000)]

    def laps() -> Iterator[None]:
        before.clear()
        torch.ones(100)
        yield

    (growth,) = measured.peak_growths(laps(), "cpu")
    assert growth < 1000


def test_counting_memory_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    measured.peak_growths((torch.ones(1000) for _ in range(2)), "cpu")
    assert tuple(capfd.readouterr()) == ("", "")
