from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from PIL import Image

from pipeline.findings import verdicts
from pipeline.judgement import Gate, Judgement
from pipeline.report import render
from pipeline.report.__main__ import main
from tests.pipeline.report import factory

TEMPLATE = Path(render.__file__).with_name("template.md.j2")
GATE = Gate(name="single_needle", unit="accuracy", seq_len=512, value=1, bound=0.95, n=200, passed=True)
GATES = Judgement(model="tiny", weights_sha256="0" * 64, gates=[GATE]).model_dump_json()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the realistic records, rendered once."""
    root = tmp_path_factory.mktemp("project")
    factory.store(factory.realistic(), root / "results")
    (root / "results" / "gates.json").write_text(GATES)
    assert main([str(root / "results"), str(root / "reports")]) == 0
    return root / "reports"


@pytest.fixture(scope="module")
def html(reports: Path) -> str:
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    return parser.render((reports / "report.md").read_text())


def test_every_table_of_the_markdown_is_a_table(reports: Path, html: str) -> None:
    rules = re.findall(r"^\| (?::---|---:)", (reports / "report.md").read_text(), re.MULTILINE)
    assert html.count("<table>") == len(rules) > 40
    assert ":---" not in html  # a table that was not understood shows its rule


def test_every_image_is_there_and_opens(reports: Path, html: str) -> None:
    images = re.findall(r'<img src="([^"]+)"', html)
    assert len(images) == len(set(images)) > 10
    for image in images:
        with Image.open(reports / image) as picture:
            picture.verify()
            assert picture.width >= 900
        ElementTree.parse(reports / image.replace(".png", ".svg"))
    drawn = {f"figures/{path.name}" for path in (reports / "figures").glob("*.png")}
    assert {name for name in drawn if "/benchmark-" not in name} == set(images)


def test_every_link_leads_somewhere(reports: Path, html: str) -> None:
    targets = {target for target in re.findall(r'<a href="([^"#]+)"', html) if not target.startswith("http")}
    assert len(targets) > 40
    assert [target for target in targets if not (reports / unquote(target)).is_file()] == []


def test_every_record_is_linked(reports: Path, html: str) -> None:
    linked = {(reports / unquote(target)).resolve() for target in re.findall(r'<a href="(\.\.[^"]+)"', html)}
    assert {path.resolve() for path in (reports.parent / "results").glob("token/*/*/*.json")} == linked


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = [factory.timed("full", 512, 1.0), factory.timed("sliding_window", 512, 0.5), factory.judged("full", 256)]
    factory.store(records, tmp_path / "results")
    once, again = (render.render(tmp_path / "results", tmp_path / "reports") for _ in range(2))
    assert once == again
    assert any(name.endswith(".svg") for name in once) and any(name.endswith(".png") for name in once)


@pytest.mark.usefixtures("undrawn")
def test_two_machines_stand_side_by_side(tmp_path: Path) -> None:
    for machine in ("machine-a", "machine-b"):
        factory.store([factory.timed("full")], tmp_path / "results", machine)
    text = render.render(tmp_path / "results", tmp_path / "reports")[render.REPORT].decode()
    assert "|  | `machine-a` | `machine-b` |" in text
    assert "machine `machine-a`" in text and "machine `machine-b`" in text


def test_the_first_screen_holds_the_machine_and_one_table_per_question(reports: Path) -> None:
    text = (reports / "report.md").read_text()
    first = text[: text.index("## How to read this")]
    assert f"Machine `{factory.MACHINE}`: Intel(R) Xeon(R) Processor" in first
    assert re.findall(r"^\*\*(.+?)\*\*", first, re.MULTILINE) == [
        "Cost at 8,192 tokens and batch 1",
        "Quality at 1,024 tokens and batch 1",
    ]


def test_the_head_counts_every_record_and_what_was_run_lists_it(reports: Path) -> None:
    text = (reports / "report.md").read_text()
    n_records = len(list((reports.parent / "results").glob("*/*/*/*.json")))
    assert f"Computed from {n_records} records of" in text
    listed = text.partition("## What was run")[2].partition("<details>")[0]
    counts = re.findall(r"(\d+) / (\d+) / (\d+) \|$", listed, re.MULTILINE)
    assert sum(int(count) for line in counts for count in line) == n_records
    assert "| benchmark |" in listed


def test_file_names_of_figures_have_no_odd_characters(reports: Path) -> None:
    names = [path.name for path in (reports / "figures").iterdir()]
    assert any(name.startswith("attention_sink-scorer-n_sinks-8-cost-") for name in names)
    assert [name for name in names if not re.fullmatch(r"[\w-]+\.(svg|png)", name)] == []


def test_an_undefined_measurement_is_rendered_as_undefined(tmp_path: Path) -> None:
    of = factory.cell("sliding_window")
    cost = factory.cost(of, 0.5).model_copy(update={"tpot_ratio": factory.interval(float("nan"), 0.0)})
    factory.store([factory.make(of, cost=cost)], tmp_path / "results")
    text = render.render(tmp_path / "results", tmp_path / "reports")[render.REPORT].decode()
    assert "a decode step took undefined of the full cache's (undefined)" in text
    assert "nan" not in text


def test_figures_without_records_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / "reports" / "figures" / "of_something_gone.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("<svg/>")
    render.write({"report.md": b"text"}, tmp_path / "reports")
    assert not stale.exists()


def test_a_corrupt_record_writes_nothing_and_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factory.store([factory.timed("full")], tmp_path / "results")
    (path,) = (tmp_path / "results").glob("*/*/*/*.json")
    path.write_text(path.read_text()[:-100])
    assert main([str(tmp_path / "results"), str(tmp_path / "reports")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: corrupt record {path}") and error.count("\n") == 1
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"gates": []}'])
def test_corrupt_gates_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    factory.store([factory.timed("full")], tmp_path / "results")
    (tmp_path / "results" / "gates.json").write_text(content)
    assert main([str(tmp_path / "results"), str(tmp_path / "reports")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "reports").exists()


def test_no_records_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "reports")]) == 2
    assert (
        capsys.readouterr().err == f"error: results_dir={tmp_path}: no records in it; measure some with `make repro`\n"
    )


def test_the_template_holds_no_number_and_no_verdict() -> None:
    template = TEMPLATE.read_text()
    prose = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", "", template)
    assert re.findall(r".*[\d%×].*", prose) == []
    words = {verdicts.FASTER, verdicts.SLOWER, verdicts.BETTER, verdicts.WORSE, verdicts.NO_DIFFERENCE}
    words |= {verdicts.STEADIER, verdicts.UNSTEADIER, verdicts.UNDECIDED, verdicts.ONE_SAMPLE}
    assert [word for word in words if word in prose] == []


def test_rendering_imports_neither_torch_nor_what_needs_it(tmp_path: Path) -> None:
    factory.store([factory.timed("full")], tmp_path / "results")
    program = (
        "import sys; from pipeline.report.__main__ import main; "
        f"main([{str(tmp_path / 'results')!r}, {str(tmp_path / 'reports')!r}]); "
        "print([m for m in ('torch', 'transformers', 'hydra', 'wandb', 'dvc', 'strategies') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
