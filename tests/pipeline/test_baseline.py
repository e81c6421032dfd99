from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import baseline, quality
from pipeline.baseline import BaselineFiles
from pipeline.quality import Arms, Continuation, Resampling
from tests.pipeline.small import arm, tokens

ASKED = (tokens(2, 8), tokens(2, 3), torch.ones(2, 3, dtype=torch.bool))
SAID = Continuation(torch.randn(6, 50, generator=torch.Generator().manual_seed(0)), 1234, 5)


def computed(files: BaselineFiles, asked: tuple[torch.Tensor, ...] = ASKED) -> bool:
    """Whether what was asked had to be computed; either way it is the same to the last bit."""
    calls: list[int] = []

    def compute() -> Continuation:
        calls.append(1)
        return SAID

    found = files.recall(asked, compute)
    assert torch.equal(found.logits, SAID.logits)
    assert (found.kv_bytes_held, found.kv_bytes_offloaded) == (1234, 5)
    return bool(calls)


def test_what_was_said_once_is_found_again_by_another_process(tmp_path: Path) -> None:
    assert computed(BaselineFiles("key", tmp_path))
    assert not computed(BaselineFiles("key", tmp_path))
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]  # and nothing half-written


@pytest.mark.parametrize("change", ["key", "prompt", "asked", "scored"])
def test_another_question_or_another_code_is_computed(tmp_path: Path, change: str) -> None:
    computed(BaselineFiles("key", tmp_path))
    prompt, asked, scored = ASKED
    other: dict[str, Any] = {"key": ASKED, "prompt": (prompt + 1, asked, scored), "asked": (prompt, asked + 1, scored),
                             "scored": (prompt, asked, ~scored)}  # fmt: skip
    assert computed(BaselineFiles("other" if change == "key" else "key", tmp_path), other[change])


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty", "pickle"])
def test_a_spoilt_file_is_computed_again_and_replaced(tmp_path: Path, spoil: str) -> None:
    files = BaselineFiles("key", tmp_path)
    computed(files)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    spoilt = {"cut": whole[:-7], "flip": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b"", "pickle": b"\x80\x04K\x01."}
    path.write_bytes(spoilt[spoil])
    assert computed(files)
    assert not computed(files)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert computed(BaselineFiles("key", tmp_path / "file"))


def test_the_folder_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = BaselineFiles("key", tmp_path)
    computed(files)
    (first,) = tmp_path.iterdir()
    monkeypatch.setattr(baseline, "MAX_SHARE", 1)
    monkeypatch.setattr(baseline, "MAX_BYTES", int(1.5 * first.stat().st_size))
    computed(files, (ASKED[0] + 1, *ASKED[1:]))
    assert len(list(tmp_path.iterdir())) == 1 and not first.exists()


def test_quality_does_not_depend_on_whether_it_was_remembered(tmp_path: Path) -> None:
    text = quality.text_streams(tokens(1, 500)[0], 64, n_streams=3, n_scored=8)

    def measured(arms: Arms) -> object:
        return quality.streaming_text(arms, text, 8, Resampling(50, 0))

    technique, full = arm("sliding_window", kv_budget=16), arm("full")
    anew = measured(Arms(technique, full))
    asked: list[int] = []

    def counted(headroom: int) -> Any:
        asked.append(headroom)
        return full(headroom)

    remembering = Arms(technique, counted, BaselineFiles("key", tmp_path).recall)
    assert measured(remembering) == measured(remembering) == anew
    assert len(asked) == 1


def test_a_technique_that_is_the_full_cache_is_asked_once() -> None:
    text = quality.text_streams(tokens(1, 500)[0], 64, n_streams=3, n_scored=8)
    asked: list[int] = []

    def counted(headroom: int) -> Any:
        asked.append(headroom)
        return arm("full")(headroom)

    found = quality.streaming_text(Arms(counted, counted), text, 8, Resampling(50, 0))
    assert len(asked) == 1 and found.nll == found.nll_full and found.kl_to_full == 0
