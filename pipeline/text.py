"""The text that quality is measured on: held-out source of the standard library, or a text of the user's."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import ROOT

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

N_CHARACTERS = 1_000_000  # as much as is held out of the standard library; what follows is never read
DEFAULT_SOURCE = "held-out files of Python's standard library"
DEFAULT_SPLIT = "test"
COLUMN = "text"
VALID = "a text file in UTF-8, or DATASET_ID[:CONFIG[:SPLIT]] with a column `text`"


@dataclass(frozen=True)
class Text:
    source: str
    sha256: str  # of a given text as far as it is used; of the whole standard library otherwise
    tokens: Tensor  # [n] int64


def check(given: str) -> None:
    """What can be refused without reading a data set: ValueError, one line."""
    if (path := _path(given)).is_file():
        _read_file(given, path)
    elif given.startswith((".", "/", "~")) and not _path(given.split(":")[0]).is_dir():
        raise _refusal(given, "no such file")
    elif importlib.util.find_spec("datasets") is None:
        raise ValueError(
            f"workload.text={given}: no such file, and without the package `datasets` not a data set; "
            "valid: a text file, or first pip install datasets"
        )


def content(given: str) -> str:
    """Its first `N_CHARACTERS`. Raises ValueError, one line, for what cannot be read or holds nothing."""
    path = _path(given)
    found = _read_file(given, path) if path.is_file() else _read_dataset(given)
    if not found.strip():
        raise _refusal(given, "holds no text")
    return found


def sha256(given: str) -> str:
    return hashlib.sha256(content(given).encode()).hexdigest()


def tokenized(given: str | None, tokenizer_path: Path) -> Text:
    """In the tokens of a model. Raises ValueError as `content` and `tokenizer_at` do."""
    from pipeline import corpus

    if given is None:
        return Text(DEFAULT_SOURCE, corpus.corpus_sha256(), _held_out(tokenizer_path))
    return Text(given, sha256(given), _encoded(content(given), tokenizer_path))


@cache
def tokenizer_at(path: Path) -> Tokenizer:
    """Raises ValueError, one line, for a file that is missing or no tokenizer."""
    from tokenizers import Tokenizer

    valid = "a folder with a tokenizer.json, or workload=cost"
    if not path.is_file():
        raise ValueError(f"model.path={path.parent}: has no {path.name}, so no text; valid: {valid}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"model.path={path.parent}: {path.name} cannot be read ({error}); valid: {valid}") from None
    tokenizer.no_truncation()  # some files say how their model was trained
    tokenizer.no_padding()
    return tokenizer


@lru_cache(maxsize=4)
def _held_out(tokenizer_path: Path) -> Tensor:
    from pipeline import corpus

    return corpus.encode_held_out(tokenizer_at(tokenizer_path))


@lru_cache(maxsize=4)
def _encoded(document: str, tokenizer_path: Path) -> Tensor:
    from pipeline import corpus

    return corpus.encode(tokenizer_at(tokenizer_path), [document])


def _path(given: str) -> Path:
    """Relative paths start at the project, wherever the command was typed."""
    return ROOT / Path(given).expanduser()


def _read_file(given: str, path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(N_CHARACTERS)
    except UnicodeDecodeError as error:
        raise _refusal(given, f"not UTF-8 ({error.reason} at byte {error.start:,})") from None
    except OSError as error:
        raise _refusal(given, str(error.strerror)) from None


@cache
def _read_dataset(given: str) -> str:
    """Rows one under the other; asked once per process, so that all cells of a grid read the same."""
    name, config, split = [*given.split(":"), "", ""][:3]
    name = str(_path(name)) if _path(name).is_dir() else name
    try:
        with _quiet():
            return "".join(_rows(name, config or None, split or DEFAULT_SPLIT))[:N_CHARACTERS]
    except Exception as error:  # the network and the builders have more ways to fail than one library has classes
        why = " ".join(str(error).split())[:300]
        raise _refusal(given, f"no such file, and as a data set: {type(error).__name__}: {why}") from None


def _rows(name: str, config: str | None, split: str) -> Iterator[str]:
    """Only as many as are needed: data sets are streamed, and `datasets` runs no scripts of theirs."""
    from datasets import load_dataset

    n_left = N_CHARACTERS
    for row in load_dataset(name, config, split=split, streaming=True):
        if not isinstance(row.get(COLUMN), str):
            raise ValueError(f"columns are {', '.join(row)}")
        line = row[COLUMN].rstrip("\n") + "\n"
        yield line
        n_left -= len(line)
        if n_left <= 0:
            return


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries log of an error is in the refusal already."""
    from datasets import logging
    from huggingface_hub.utils import logging as hub_logging

    before = logging.get_verbosity(), hub_logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before[0])
        hub_logging.set_verbosity(before[1])


def _refusal(given: str, why: str) -> ValueError:
    return ValueError(f"workload.text={given}: {why}; valid: {VALID}")
