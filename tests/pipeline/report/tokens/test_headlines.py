"""What `dvc metrics` prints: one row for each technique, from the rows that stand first in the report."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline import ROOT
from pipeline.findings import evidence
from pipeline.record import Record
from pipeline.report import render
from pipeline.report.tokens import headlines
from tests.pipeline.report import factory
from tests.pipeline.test_dvc import STAGES, dvc

WIDTH = 120  # of a terminal


def techniques(**ratios: float) -> list[Record]:
    timed = [factory.timed(name, 1024, ratio) for name, ratio in ratios.items()]
    return timed + [factory.judged(name, 512, loss=0.0 if name == "full" else 0.3) for name in ratios]


def metrics_of(records: list[Record], folder: Path) -> dict[str, dict[str, float]]:
    found = headlines.metrics(evidence.load(factory.store(records, folder)))
    return {name: json.loads(content) for name, content in found.items()}


def test_a_technique_has_one_file_with_the_numbers_of_its_records(tmp_path: Path) -> None:
    records = techniques(full=1.0, h2o=0.51234)
    found = metrics_of(records, tmp_path)
    folder = f"{headlines.FOLDER}/{factory.MACHINE}"
    assert list(found) == [f"{folder}/full.json", f"{folder}/h2o.json"]
    cost, quality = records[1].cost, records[3].quality
    assert cost and quality and quality.text
    assert found[f"{folder}/h2o.json"] == {
        "tpot_ratio": 0.512,
        "ttft_ratio": round(cost.ttft_ratio.estimate, 3),
        "kv_share": round(cost.technique.kv_bytes_held[-1] / cost.full.kv_bytes_held[-1], 3),
        "recall": 0.7,
        "text_nll": round(quality.text.nll, 3),
    }


def test_other_records_give_other_numbers(tmp_path: Path) -> None:
    slow, fast = (metrics_of(techniques(full=1.0, h2o=ratio), tmp_path / str(ratio)) for ratio in (1.5, 0.5))
    (name,) = [name for name in slow if name.endswith("h2o.json")]
    assert (slow[name]["tpot_ratio"], fast[name]["tpot_ratio"]) == (1.5, 0.5)


def test_what_was_skipped_or_is_undefined_has_no_number(tmp_path: Path) -> None:
    of = factory.cell("tova", 1024)
    undefined = factory.cost(of, 0.5).model_copy(update={"tpot_ratio": factory.interval(float("nan"), 0.0)})
    records = [*techniques(full=1.0), factory.make(of, cost=undefined)]
    records.append(factory.make(factory.cell("h2o", 1024), status="skipped", reason="too long", remedy="a shorter one"))
    found = {Path(name).stem: numbers for name, numbers in metrics_of(records, tmp_path).items()}
    assert "h2o" not in found and found["tova"].keys() == {"ttft_ratio", "kv_share"}


def test_each_machine_has_a_folder_and_ablations_have_none(tmp_path: Path) -> None:
    factory.store(techniques(full=1.0), tmp_path, "machine-a")
    records = [*techniques(full=1.0), factory.timed("h2o", 1024, 0.5, level="ablation")]
    found = metrics_of(records, tmp_path)
    assert [Path(name).parent.name for name in found] == ["machine-a", factory.MACHINE]
    assert {Path(name).stem for name in found} == {"full"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The project's metrics, parameters and stages, with a report, committed."""
    for name in (".dvc/config", "dvc.yaml", "params.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    write(techniques(full=1.0, attention_sink_int8=0.5), tmp_path)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "first"]):
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    return tmp_path


def write(records: list[Record], folder: Path) -> None:
    rows = evidence.load(factory.store(records, folder / "results"))
    render.write(headlines.metrics(rows), folder / "reports")


def printed(folder: Path, *arguments: str) -> list[str]:
    done = dvc(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_dvc_shows_one_row_for_each_technique_and_what_changed(repository: Path) -> None:
    heading, *rows = printed(repository, "metrics", "show")
    assert heading.split() == ["Path", "kv_share", "recall", "text_nll", "tpot_ratio", "ttft_ratio"]
    assert [Path(row.split()[0]).stem for row in rows] == ["attention_sink_int8", "full"]
    assert max(map(len, (heading, *rows))) <= WIDTH
    assert printed(repository, "metrics", "diff") == []
    write(techniques(full=1.0, attention_sink_int8=0.75), repository)
    (changed,) = [line.split() for line in printed(repository, "metrics", "diff") if "tpot_ratio" in line]
    assert Path(changed[0]).stem == "attention_sink_int8" and changed[1:] == ["tpot_ratio", "0.5", "0.75", "0.25"]


def test_dvc_shows_which_parameters_changed(repository: Path) -> None:
    path = repository / "conf/profile/smoke.yaml"
    given = OmegaConf.load(path)
    OmegaConf.update(given, "n_items", 77)
    OmegaConf.save(given, path)
    listed = (repository / "params.yaml").read_text().replace("  - tova\n", "")
    (repository / "params.yaml").write_text(listed)
    heading, *rows = printed(repository, "params", "diff")
    assert heading.split() == ["Path", "Param", "HEAD", "workspace"]
    assert [row.split()[:2] for row in rows if "77" in row] == [["conf/profile/smoke.yaml", "n_items"]]
    assert any(row.startswith("params.yaml") and row.split()[1] == "strategies" for row in rows)


def test_the_stage_that_renders_them_declares_them() -> None:
    assert STAGES["report"]["metrics"] == [{f"reports/{headlines.FOLDER}": {"cache": False}}]


def test_metrics_of_techniques_without_records_are_removed(tmp_path: Path) -> None:
    write(techniques(full=1.0, h2o=0.5), tmp_path)
    render.write({render.REPORT: b"text"}, tmp_path / "reports")
    assert list((tmp_path / "reports" / headlines.FOLDER).rglob("*.json")) == []
