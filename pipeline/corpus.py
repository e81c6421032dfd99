"""Real text without a download: the source of the running interpreter's own standard library.

Files are split by a hash of their path, so the held-out text never takes part in training, and the split survives
a change of the library elsewhere. The tokenizer is saved with the checkpoint: evaluation never trains one again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pipeline import ROOT

N_TEXT_IDS = 1024
HELD_OUT_SHARE = 0.1
HELD_OUT_BYTES = 1_000_000
EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}


def is_held_out(relative_path: str) -> bool:
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


@functools.lru_cache(maxsize=1)
def relative_paths() -> list[str]:
    """Every Python source file of the standard library but its tests, in a fixed order."""
    root = stdlib()
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED and not name.startswith("config-")]
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if name.endswith(".py")]
    return sorted(found)


def stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def texts(*, held_out: bool) -> Iterator[str]:
    for path in relative_paths():
        if is_held_out(path) == held_out:
            yield (stdlib() / path).read_text(encoding="utf-8", errors="replace")


@functools.lru_cache(maxsize=1)
def corpus_sha256() -> str:
    """One hash over every path and every byte, training and held-out text together."""
    digest = hashlib.sha256()
    for path in relative_paths():
        content = (stdlib() / path).read_bytes()
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE of `N_TEXT_IDS` tokens, from the training text only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TEXT_IDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(held_out=False), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    """All documents behind one another, [n] int64."""
    encoded = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    return torch.from_numpy(np.concatenate([np.asarray(document.ids, dtype=np.int64) for document in encoded]))


def training_text(folder: Path | None = None) -> tuple[Tokenizer, Tensor]:
    """The tokenizer and the training tokens [n] int64; kept under the hash of the corpus, in a folder git ignores."""
    folder = folder or ROOT / ".cache" / f"corpus-{corpus_sha256()[:16]}"
    tokens_path, tokenizer_path = folder / "train.npy", folder / "tokenizer.json"
    if not tokens_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer()
        tokenizer.save(str(tokenizer_path))
        partial = folder / f"train.{os.getpid()}.tmp.npy"
        np.save(partial, encode(tokenizer, list(texts(held_out=False))).numpy().astype(np.int16))
        os.replace(partial, tokens_path)  # last: its presence says that both files are whole
    return Tokenizer.from_file(str(tokenizer_path)), torch.from_numpy(np.load(tokens_path).astype(np.int64))


@functools.lru_cache(maxsize=4)
def held_out_tokens(tokenizer_path: Path) -> Tensor:
    """Held-out text in the checkpoint's own tokens, [n] int64; `HELD_OUT_BYTES` of it are enough.

    Raises ValueError when the tokenizer file is missing.
    """
    if not tokenizer_path.is_file():
        raise ValueError(f"tokenizer_path={tokenizer_path}: no such file; valid: the tokenizer.json of a checkpoint")
    return encode_held_out(Tokenizer.from_file(str(tokenizer_path)))


def encode_held_out(tokenizer: Tokenizer) -> Tensor:
    documents, n_left = [], HELD_OUT_BYTES
    for document in texts(held_out=True):
        documents.append(document[:n_left])
        n_left -= len(documents[-1])
        if n_left == 0:
            break
    return encode(tokenizer, documents)
