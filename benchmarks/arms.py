"""What is timed: one technique or cache at one point, and the record that it becomes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.prompting import Streamed, Widened
from pipeline import ROOT, grid, hardware, record
from pipeline.bars import AGAINST, LEVEL, SEEN, Plan
from pipeline.config import Experiment
from pipeline.decoding import Decoder
from pipeline.fingerprint import fingerprint
from pipeline.levels.paired import Bench
from pipeline.record import Cell, Cost, Predicted, Record
from pipeline.refusals import CONF

TRIED_TOKENS = 64  # of a prompt that only asks whether an arm can run


@dataclass(frozen=True)
class Row:
    """One arm: a cell of this level and the record it becomes."""

    experiment: Experiment
    cell: Cell

    @property
    def config(self) -> dict[str, Any]:
        """What really ran, where that is not what the configuration of the token level says."""
        resolved = self.experiment.resolved
        measure = {
            "_target_": "pipeline.levels.paired.Bench.timed",
            "prompt": {"_target_": f"{Decoder.__module__}.{Decoder.__name__}"},
            "cpp_compiler": cpp_compiler() is not None,
        }
        if (takes := self._takes) is not None:
            measure["prompt"] = {"_target_": f"{takes.__module__}.{takes.__name__}"}
        return resolved | {
            "level": {"name": LEVEL, "measure": measure},
            "workload": resolved["workload"] | {"name": self.cell.workload, "measure": ["cost"]},
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.config, self.cell, hardware.identity())

    @property
    def path(self) -> Path:
        return record.path_of(self.cell, self.experiment.results_path, hardware.hardware_id())

    @property
    def reads_prompts(self) -> bool:
        """Whether the time to the first token is that of a prompt like the cell's."""
        return self._takes is None

    @property
    def _takes(self) -> type[Decoder] | None:
        return Streamed if self.cell.workload == SEEN else Widened if self.cell.batch > 1 else None

    def kept(self) -> Record | None:
        """Its record, where one is there and still holds. Raises ValueError for a corrupt one."""
        return grid.kept(self.path, self.fingerprint)

    def decoder(self, new_decoder: Callable[[int], Decoder], headroom: int | None = None) -> Decoder:
        plain = new_decoder(headroom or self.cell.n_new_tokens)
        if self._takes is Streamed:
            return Streamed(plain.model, plain.cache, self.cell.seq_len)
        return plain if self._takes is None else Widened(plain.model, plain.cache)

    def tried(self) -> tuple[Bench, bool]:
        """Ready to be timed, since a short prompt and a step went through; and whether that is the device's work alone.

        Raises whatever the technique raises.
        """
        bench = Bench.of(self.cell, self.experiment)
        prompt = torch.zeros(self.cell.batch, TRIED_TOKENS, dtype=torch.long, device=self.cell.device)
        with self.decoder(bench.arms.technique) as decoder:
            decoder.feed(prompt)
            decoder.feed(prompt[:, :1])
            return bench, decoder.stays_on_device

    def measured(self, predicted: Predicted, cost: Cost, wall_s: float) -> Record:
        return self._record(status="ok", predicted=predicted, cost=cost, wall_s=wall_s)

    def failed(self, error: Exception) -> Record:
        return self._record(**grid.failure(error), wall_s=0.0)

    def skipped(self, reason: str, remedy: str) -> Record:
        return self._record(status="skipped", reason=reason, remedy=remedy, wall_s=0.0)

    def _record(self, **parts: Any) -> Record:
        made = Record(
            cell=self.cell,
            fingerprint=self.fingerprint,
            config=self.config,
            environment={
                "hardware_id": hardware.hardware_id(),
                "hardware": hardware.identity(),
                "versions": hardware.versions(),
                "n_threads": self.experiment.n_threads,
                "cpp_compiler": cpp_compiler(),
            },
            **parts,
        )
        record.write(made, self.path)
        return made


def names(plan: Plan, only: Sequence[str] = (), *, judged: bool = False) -> list[str]:
    """Every technique of params.yaml and every cache of Transformers but the reference, and what is tried beside them.

    `judged`: of the techniques only those that have a bar. Raises ValueError for a name in `only` that is none of them.
    """
    ours = [str(name) for name in OmegaConf.load(ROOT / "params.yaml").strategies]
    stock = sorted(path.stem for path in (CONF / "strategy").glob("hf_*.yaml"))
    found = [name for name in (*ours, *stock) if name != plan.reference]
    found += [name for name in plan.extra if name.partition("+")[0] in found]
    if unknown := [name for name in only if name not in found]:
        raise ValueError(f"--only={unknown[0]}: no arm of this benchmark; valid: {', '.join(found)}")
    asked = [name for name in found if name in only] if only else found
    return [name for name in asked if not judged or name in plan.bars or name.partition("+")[0] in stock]


def decides_every_step(arm: str) -> bool:
    """Whether a technique evicts in every step, so that it can read a stream of any length."""
    published = OmegaConf.load(CONF / "strategy" / f"{arm.partition('+')[0]}.yaml").defaults
    return {"schedule": "every_step"} in published


def rows(arms: Sequence[str], overrides: Sequence[str], workload: str = AGAINST) -> Iterator[Row]:
    """All points of all arms; `arms` are names of strategies, with what is changed: `kivi+encoding.bits=2`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for arm in arms:
            name, *changes = arm.split("+")
            chosen = [f"strategy={name}", *(f"strategy.{change}" for change in changes)]
            experiment = Experiment.from_hydra(compose("config", [*chosen, *overrides]))
            for cell in experiment.cells():
                yield Row(experiment, cell.model_copy(update={"level": LEVEL, "workload": workload}))


def arm_of(row: Row, new_decoder: Callable[[int], Decoder]) -> Callable[[], Decoder]:
    return partial(row.decoder, new_decoder)


def cpp_compiler() -> str | None:
    """What torch would compile packed codes with on a CPU; without one they run uncompiled."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))), None)
