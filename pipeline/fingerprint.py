"""What a measurement depends on, as one hash: a cell whose fingerprint matches is not measured again.

Source enters as its syntax tree without docstrings, so that a comment or a re-formatting measures nothing again.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import ROOT, models, text
from pipeline.hardware import engines, n_usable_cores, versions
from pipeline.record import Cell

FIRST_PARTY = ("pipeline", "strategies", "benchmarks")
# What changes no number: how results are stored or followed, names and stories, and what the cell holds already.
_NO_INFLUENCE = ("tracking", "results_dir", "prune", "device")
_NO_INFLUENCE_WITHIN = {
    "model": ("title",),
    "strategy": ("title", "summary", "paper", "keep_ratio", "kv_budget"),
    "baseline": ("title", "summary", "paper"),
    "weights": ("title", "summary", "paper"),
    "engine": ("title", "summary"),
    "workload": ("name", "seq_len", "batch"),
    "profile": ("name", "n_threads", "standard_seq_len", "quality_seq_len", "cost_seq_len", "batched_seq_len"),
}
# What these hold enters by value: the resolved configuration, the hardware, the shape of a record.
BY_VALUE = ("pipeline", "pipeline.config", "pipeline.hardware", "pipeline.record")


def fingerprint(resolved: dict[str, Any], cell: Cell, hardware: dict[str, Any], root: Path = ROOT) -> str:
    """sha256 over configuration, code, versions, hardware, the model's files or commit, and the user's text."""
    parts = {
        "cell": cell.model_dump(),
        "config": _influential(resolved),
        "n_threads": resolved["profile"]["n_threads"] or n_usable_cores(),
        "code": code_hashes(targets(resolved), root),
        "versions": versions(),
        "engine": engines().get(resolved["engine"]["name"].partition("_")[0]),
        "hardware": hardware,
        "model": _identity(resolved["model"]),
        "reference": _identity(_reference(resolved)),
        "text": _text_hash(resolved["workload"]),
    }
    return digest(parts)


def baseline_key(resolved: dict[str, Any], cell: Cell, hardware: dict[str, Any], root: Path = ROOT) -> str:
    """sha256 over all that the reference's logits depend on but its tokens, whatever is compared with it."""
    influential = _influential(resolved)
    weights = resolved["level"].get("reference_weights") or resolved["weights"]
    parts = {
        "config": {name: influential[name] for name in ("baseline", "engine")} | {"weights": weights["transforms"]},
        "computed": [cell.dtype, cell.device, cell.seed, resolved["profile"]["n_threads"] or n_usable_cores()],
        "code": code_hashes([*targets([resolved["baseline"], resolved["level"], weights, _reference(resolved)])], root),
        "versions": versions(),
        "hardware": hardware,
        "model": [_shape(_reference(resolved)), _identity(_reference(resolved))],
    }
    return digest(parts)


def _reference(resolved: dict[str, Any]) -> dict[str, Any]:
    """The model of the baseline."""
    return resolved["level"].get("reference") or resolved["model"]


def _identity(model: dict[str, Any]) -> dict[str, Any]:
    return models.identity(*(model[name] for name in ("source", "path", "revision")))


def _shape(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in _NO_INFLUENCE_WITHIN["model"]}


def digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def code_hashes(
    names: Iterator[str] | list[str], root: Path = ROOT, leave_out: Collection[str] = BY_VALUE
) -> dict[str, str]:
    """The syntax trees, without docstrings, of all first-party code that `names` reach."""
    found = import_closure(names, root, leave_out)
    return {name: _read(path, path.stat().st_mtime_ns, name)[1] for name, path in found.items()}


def _influential(resolved: dict[str, Any]) -> dict[str, Any]:
    left = {key: value for key, value in resolved.items() if key not in _NO_INFLUENCE}
    for group, names in _NO_INFLUENCE_WITHIN.items():
        left[group] = {key: value for key, value in resolved[group].items() if key not in names}
    return left


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


def import_closure(
    names: Iterator[str] | list[str], root: Path = ROOT, leave_out: Collection[str] = BY_VALUE
) -> dict[str, Path]:
    """First-party modules reached from dotted names by following every import, also those inside functions."""
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        module, path = _locate(waiting.pop(), root)
        if path is not None and module not in found and module not in leave_out:
            found[module] = path
            waiting += _read(path, path.stat().st_mtime_ns, module)[0]
    return dict(sorted(found.items()))


@cache
def _read(path: Path, changed_ns: int, module: str) -> tuple[list[str], str]:
    """What a file imports, and the hash of its tree; read again when it was changed."""
    return imported_names(path, module), _tree_hash(path)


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
    return digest(_plain(tree))


def _plain(node: Any) -> Any:
    """A syntax tree as plain lists, the same in every version of Python: they differ in what they leave empty."""
    if isinstance(node, ast.AST):
        filled = [[name, _plain(value)] for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *filled]
    return [_plain(item) for item in node] if isinstance(node, list) else repr(node)


def _text_hash(workload: dict[str, Any]) -> str | None:
    """None for the standard library's text: the Python version says which it is."""
    given = workload["text"] if "quality" in workload["measure"] else None
    return None if given is None else text.sha256(given)
