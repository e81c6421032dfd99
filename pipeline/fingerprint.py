"""What a measurement depends on, as one hash: a cell whose fingerprint matches is not measured again.

Source enters as its syntax tree without docstrings, so that a comment or a re-formatting measures nothing again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import ROOT
from pipeline.record import Cell

FIRST_PARTY = ("pipeline", "strategies")
# How results are stored or followed, and which other cells are in the grid, do not change a cell's numbers.
_NO_INFLUENCE = ("tracking", "results_dir", "prune")
# What these hold enters by value: the resolved configuration, the hardware, the shape of a record.
_BY_VALUE = ("pipeline", "pipeline.config", "pipeline.hardware", "pipeline.record")


def fingerprint(resolved: dict[str, Any], cell: Cell, hardware: dict[str, Any], root: Path = ROOT) -> str:
    """sha256 over configuration, code, versions, hardware and the model's files."""
    config = {key: value for key, value in resolved.items() if key not in _NO_INFLUENCE}
    config["workload"] = {k: v for k, v in resolved["workload"].items() if k not in ("seq_len", "batch")}
    parts = {
        "cell": cell.model_dump(),
        "config": config,
        "code": {name: _tree_hash(path) for name, path in import_closure(targets(resolved), root).items()},
        "versions": versions(),
        "hardware": hardware,
        "model": _model_hashes(root, resolved["model"].get("path")),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The full Python version: its standard library is the text that quality is measured on."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"python": platform.python_version(), **packages}


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a resolved configuration."""
    if isinstance(node, dict):
        if isinstance(target := node.get("_target_"), str):
            yield target
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def import_closure(names: Iterator[str] | list[str], root: Path = ROOT) -> dict[str, Path]:
    """First-party modules reached from dotted names by following every import, also those inside functions."""
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        module, path = _locate(waiting.pop(), root)
        if path is not None and module not in found and module not in _BY_VALUE:
            found[module] = path
            waiting += imported_names(path, module)
    return dict(sorted(found.items()))


def imported_names(path: Path, module: str) -> list[str]:
    """Dotted names that a file imports when it runs: what stands under `if TYPE_CHECKING:` is left out."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in _running_nodes(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            names += [f"{source}.{alias.name}" for alias in node.names]
    return names


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from _running_nodes(child)


def _locate(name: str, root: Path) -> tuple[str, Path | None]:
    """The longest head of a dotted name that is a first-party file; its tail is a class or a function."""
    parts = name.split(".")
    while parts and parts[0] in FIRST_PARTY:
        stem = root.joinpath(*parts)
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return ".".join(parts), path
        parts.pop()
    return name, None


def _tree_hash(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _model_hashes(root: Path, folder: str | None) -> dict[str, str]:
    """Hashes of the weights, configuration and tokenizer of a local model; none for a name on the hub."""
    if folder is None or not (root / folder).is_dir():
        return {}
    files = [path for path in sorted((root / folder).iterdir()) if path.suffix in (".safetensors", ".json")]
    return {path.name: _file_hash(path) for path in files}


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
