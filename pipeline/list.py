"""What there is to choose from, a line each: techniques, parts, models, weights, engines, levels, workloads, profiles.

python -m pipeline.list    reads the files of conf/ as they are written, composes nothing
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import ROOT

CONF = ROOT / "conf"
TOLD_OF_A_PROFILE = ("max_cell_s", "n_items", "standard_seq_len", "quality_seq_len", "cost_seq_len", "batched_seq_len")
Row = dict[str, str]


def technique(file: Path) -> Row:
    node = _read(file)
    return {"strategy": file.stem, **{key: _said(node[key]) for key in ("title", "paper", "summary")}}


def axes(file: Path) -> Row:
    """In one column, which a narrow terminal folds between words: there are too many axes for one each."""
    return {"strategy": file.stem, "parts": " ".join(f"{axis}={part}" for axis, part in _overridden(_read(file)))}


def model(file: Path) -> Row:
    node = _whole(file)
    limit = f"{node['max_seq_len']:,} tokens{', hard' if node['hard_limit'] else ''}" if node["max_seq_len"] else "-"
    return {"model": file.stem, "title": node["title"], "source": node["source"], "limit": limit}


def level(file: Path) -> Row:
    return {"level": file.stem, "measured by": _read(file)["measure"]["_target_"]}


def workload(file: Path) -> Row:
    """What a workload leaves to the profile or to the default model is named, not resolved."""
    node = _whole(file)
    said = {key: _said(node[key]) for key in ("measure", "seq_len", "batch", "tasks")}
    chosen = dict(_overridden(node)).get("model", dict(_overridden(_read(CONF / "config.yaml")))["model"])
    return {"workload": file.stem, "model": chosen, **said}


def weights(file: Path) -> Row:
    node = _read(file)
    return {"weights": file.stem, **{key: _said(node[key]) for key in ("title", "paper", "summary")}}


def engine(file: Path) -> Row:
    node = _whole(file)
    return {"engine": file.stem, **{key: _said(node[key]) for key in ("title", "summary")}}


def profile(file: Path) -> Row:
    """`auto`, `cpu` and `cuda` take the file of a hardware; which one `auto` takes, only the machine decides."""
    node = _read(file)
    for chosen in (name for group, name in _overridden(node) if group == "hardware"):
        path = file.parent / "hardware" / f"{chosen}.yaml"
        if not path.exists():
            return {"profile": file.stem, "max_cell_s": "of " + " or ".join(_names(file.parent / "hardware"))}
        node = _read(path)
    return {"profile": file.stem, **{key: _said(node[key]) for key in TOLD_OF_A_PROFILE}}


def part(folder: Path) -> Row:
    return {"axis": f"strategy/{folder.name}", "parts": ", ".join(_names(folder))}


def rows(group: str, describe: Callable[[Path], Row]) -> list[Row]:
    return [describe(file) for file in sorted((CONF / group).glob("*.yaml"))]


def tables() -> Iterator[Table]:
    yield _table("techniques", rows("strategy", technique))
    yield _table("their parts on each axis", rows("strategy", axes))
    yield _table(
        "parts to choose from", [part(folder) for folder in sorted((CONF / "strategy").iterdir()) if folder.is_dir()]
    )
    for describe in (model, weights, engine, level, workload, profile):
        group = describe.__name__
        yield _table(group if group.endswith("s") else f"{group}s", rows(group, describe))


def main() -> None:
    argparse.ArgumentParser("pipeline.list", description=(__doc__ or "").splitlines()[0]).parse_args()
    console = Console()
    if not console.is_terminal:  # a line that is folded at 80 columns cannot be searched
        console = Console(width=1000)
    for table in tables():
        console.print(table)


def _table(title: str, of: list[Row]) -> Table:
    """The first column is what to type: GROUP=NAME. A column is there where any row fills it."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    columns = list(dict.fromkeys(name for row in of for name in row))
    for name in columns:
        table.add_column(name, no_wrap=name == columns[0], overflow="fold")
    for row in of:
        table.add_row(*(Text(row.get(name, "")) for name in columns))
    return table


def _read(file: Path) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(node, dict), file
    return {str(key): value for key, value in node.items()}


def _whole(file: Path) -> dict[str, Any]:
    """With what it takes from another file of its group, but for what it says itself."""
    node = _read(file)
    for other in node.get("defaults", []):
        if isinstance(other, str) and other != "_self_":
            node = _whole(file.with_name(f"{other}.yaml")) | node
    return node


def _overridden(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Group and choice of every default: `override /model@_global_.model: bench` chooses `bench` of `model`."""
    for default in node.get("defaults", []):
        if isinstance(default, dict):
            ((group, choice),) = default.items()
            yield group.removeprefix("override /").partition("@")[0], choice


def _names(folder: Path) -> Iterable[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "-"
    text = "-" if value is None else str(value)
    return text.removeprefix("${").removesuffix("}") if text.startswith("${") else text


if __name__ == "__main__":
    main()
