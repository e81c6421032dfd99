"""What a test would take that found nothing: which cells they are, and the command that measures them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.findings.evidence import changes
from pipeline.report.claims.ledger import Check

# Levels and parts with a command of their own; all other cells are measured by `pipeline.run`.
COMMANDS = {
    "study": "make study",
    "ablation": "python -m pipeline.ablations",
    "benchmark": "python -m benchmarks.token_level",
    "shapes": "python -m pipeline.memory.tables",
    "heads": "python -m pipeline.memory.tables",
    "scenarios": "python -m pipeline.memory.tables",
    "stack": "python -m pipeline.memory.tables",
    "policies": "python -m pipeline.serving",
    "fills": "python -m pipeline.serving",
    "recounted": "python -m pipeline.serving",
    "gates": "python -m pipeline.gates",
}
OPTIONS = {
    "strategy": "strategy",
    "model": "model",
    "weights": "weights",
    "engine": "engine",
    "workload": "workload",
    "dtype": "dtype",
    "seq_len": "workload.seq_len",
    "batch": "workload.batch",
    "n_new_tokens": "workload.n_new_tokens",
}
LISTS = ("seq_len", "batch")  # a list of them is one option, not a sweep
ANY = ("dtype",)  # one of them will do


def described(test: Check) -> str:
    """`level=token, strategy=h2o, seq_len from 8192`, and what it is compared with."""
    cells = ", ".join(f"{key}={_shown(value)}" for key, value in test.cells.items())
    against = ", ".join(f"{key}={_shown(value)}" for key, value in test.against.items())
    return f"`{cells}` beside `{against}`" if against else f"`{cells}`"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{word} {value[end]}" for end, word in (("min", "from"), ("max", "to")) if end in value)
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def remedy(test: Check) -> str:
    place = str(test.cells.get("part", test.cells.get("level")))
    return f"Measure with `{COMMANDS.get(place) or _run(test)}`."


def _run(test: Check) -> str:
    wanted = {key: _merged(test, key) for key in OPTIONS if key in test.cells or key in test.against}
    options = [option for key, values in wanted.items() for option in _options(key, values)]
    sweeps = any(len(values) > 1 for key, values in wanted.items() if key not in LISTS)
    return " ".join(["python -m pipeline.run", *(["--multirun"] if sweeps else []), *options])


def _merged(test: Check, key: str) -> list[str]:
    """The values of both sides of a pair, each once."""
    both = list(dict.fromkeys(value for side in (test.cells, test.against) for value in _values(side, key)))
    return both[:1] if key in ANY else both


def _values(side: Mapping[str, Any], key: str) -> list[str]:
    value = side.get(key, [])
    if isinstance(value, dict):
        value = value.get("min", value.get("max"))
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _options(key: str, values: list[str]) -> list[str]:
    """As the command line takes them: `kivi+encoding.bits=2` is a strategy, and an option of one of its parts."""
    joined = ",".join(dict.fromkeys(value.partition("+")[0] for value in values))
    changed = [f"{key}{'.' if '.' in change else '/'}{change}" for value in values for change in changes(value)]
    return [f"{OPTIONS[key]}={f'[{joined}]' if key in LISTS else joined}", *changed]
