"""Can the embedded model recall and read, and does every mechanism show on it? Without, no quality would say anything.

python -m pipeline.gates          measures every gate, and what each scorer keeps, and writes results/gates.json
python -m pipeline.gates --check  measures nothing: exit code 1 where a written gate or a cell has failed
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from pipeline import ROOT, bars, judgement, record
from pipeline.judgement import FILE_NAME, Gate, Judgement
from pipeline.record import Record
from pipeline.refusals import refusals

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

N_ITEMS = 200
BATCH = 8
TEXT_SEQ_LEN = 256
SEED = 0
RECALL_BOUNDS = {
    ("single_needle", 512): 0.95,
    ("multi_key_8", 512): 0.93,
    ("multi_key_32", 512): 0.90,
    ("single_needle", 1024): 0.90,
}
TEXT_BOUND = 1.0


def judge(model: PreTrainedModel, held_out: Tensor, n_items: int = N_ITEMS) -> list[Gate]:
    """Every gate of a trained model with the full cache; `held_out` [n] is text that it has never seen."""
    gates = [
        _gate(task, "accuracy", seq_len, recall_accuracy(model, task, seq_len, held_out, n_items), bound, n_items)
        for (task, seq_len), bound in RECALL_BOUNDS.items()
    ]
    gain = unigram_nll(held_out) - text_nll(model, held_out, n_items)
    return [*gates, _gate("held_out_text", "nats under unigram", TEXT_SEQ_LEN, gain, TEXT_BOUND, n_items)]


def recall_accuracy(model: PreTrainedModel, task: str, seq_len: int, held_out: Tensor, n_items: int) -> float:
    """Share of answers, over all items, that the model gives first after context and question."""
    import torch

    from pipeline import tasks

    items = tasks.recall_items(task, seq_len, n_items, SEED, held_out)
    prompts, hits = torch.cat([items.context, items.question], dim=1), []
    for ids, answer in zip(prompts.split(BATCH), items.answer.split(BATCH), strict=True):
        with torch.inference_mode():
            predicted = model(ids, logits_to_keep=answer.shape[1], use_cache=False).logits.argmax(-1)
        asked = answer != tasks.IGNORED
        hits.append((predicted == answer)[asked])
    return torch.cat(hits).double().mean().item()


def text_nll(model: PreTrainedModel, held_out: Tensor, n_windows: int) -> float:
    """Mean loss in nats per token over windows spread evenly over the text."""
    import torch
    from torch.nn.functional import cross_entropy

    starts = torch.linspace(0, len(held_out) - TEXT_SEQ_LEN - 1, n_windows).long()
    windows, losses = held_out[starts[:, None] + torch.arange(TEXT_SEQ_LEN + 1)], []
    for window in windows.split(BATCH):
        with torch.inference_mode():
            logits = model(window[:, :-1], use_cache=False).logits
        losses.append(cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).double().mean().item()


def unigram_nll(text: Tensor) -> float:
    """The loss of the best possible unigram model of this very text: its entropy in nats per token."""
    share = text.bincount().double() / len(text)
    return -share.xlogy(share).sum().item()


def measure(results_dir: Path) -> list[Gate]:
    """Judge `model=tiny` and the techniques on it, and write the answer.

    Raises ValueError where its checkpoint is not there.
    """
    from pipeline import config, corpus, kept, mechanisms, models, structure

    tiny = config.Model.model_validate(OmegaConf.to_container(OmegaConf.load(ROOT / "conf/model/tiny.yaml")))
    loaded = models.load(tiny, "float32", "cpu", SEED)
    if loaded.tokenizer_path is None:
        raise ValueError(f"model.path={tiny.path}: no tokenizer.json; valid: a folder written by pipeline.train")
    text = corpus.held_out_tokens(loaded.tokenizer_path)
    lab = mechanisms.Lab(loaded.model, text)
    gates = [*judge(loaded.model, text), *mechanisms.judge(lab), *structure.judge(lab)]
    judged = Judgement(model="tiny", weights_sha256=loaded.weights_sha256, gates=gates, kept=kept.measure(lab))
    _write(results_dir / FILE_NAME, judged)
    return gates


def failures(results_dir: Path) -> list[str]:
    """One line for every failed gate, every cell of a stage with status `error`, and every bar that a technique missed
    while it is worse than our own full cache.

    Raises ValueError for a corrupt record, and where the gates have not been measured.
    """
    written = judgement.read(results_dir)
    if written is None:
        raise ValueError(f"{results_dir / FILE_NAME}: not there; first run: python -m pipeline.gates")
    gates = (gate for gate in written.gates if not gate.passed)
    judged = list(_judged(results_dir))
    cells = (item for item in judged if item.status == "error")
    benchmarked = (item for item in judged if item.cell.level == bars.LEVEL)
    return [
        *(f"gate {gate.name} at {gate.seq_len} tokens: {gate.value:.3f}, not {gate.demand}" for gate in gates),
        *(f"cell {item.cell.level}/{item.cell.strategy}/{item.cell.slug}: {item.reason}" for item in cells),
        *bars.defects(benchmarked, bars.load()),
    ]


def _judged(results_dir: Path) -> Iterator[Record]:
    """The records of the stages; what was tried beside them does not decide."""
    strategies = OmegaConf.load(ROOT / "params.yaml").strategies
    for path in sorted(results_dir.glob("*/*/*/*.json")):
        level, strategy = path.relative_to(results_dir).parts[:2]
        if level != "token" or strategy in strategies:
            yield record.read(path)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("pipeline.gates", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="decide the exit code from what is written")
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results")
    given = parser.parse_args(arguments)
    with refusals():
        if not given.check:
            show(measure(given.results_dir))
            return 0
        failed = failures(given.results_dir)
    for line in failed:
        print(line, file=sys.stderr)
    print(f"{len(failed)} failed" if failed else "every gate passed and no cell failed")
    return int(bool(failed))


def show(gates: list[Gate]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("gate", "tokens", "value", "demanded", "n", "", title="Gates of the embedded model")
    for gate in gates:
        mark = "passed" if gate.passed else "[red]FAILED"
        table.add_row(
            f"{gate.name} ({gate.unit})", str(gate.seq_len), f"{gate.value:.3f}", gate.demand, str(gate.n), mark
        )
    Console().print(table)


def _gate(name: str, unit: str, seq_len: int, value: float, bound: float, n: int) -> Gate:
    return Gate(name=name, unit=unit, seq_len=seq_len, value=value, bound=bound, n=n, passed=value >= bound)


def _write(path: Path, judged: Judgement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(judged.model_dump_json(indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
