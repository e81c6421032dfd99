"""The decode step of the slot cache against Transformers' DynamicCache, in one process, paired and interleaved.

    python -m benchmarks.decode_step workload.seq_len=2048 seed=1

Each arm becomes a record of level `benchmark` and workload `against_dynamic_cache`. In these records `cost.full` is
the reference, which here is DynamicCache with stock attention, and the A/A arm is DynamicCache once more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from hydra import compose, initialize_config_dir
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, PreTrainedModel

from pipeline import hardware, record, timing
from pipeline.config import Experiment
from pipeline.decoding import Decoder
from pipeline.fingerprint import fingerprint, versions
from pipeline.levels.token import Bench
from pipeline.record import Record
from pipeline.refusals import CONF, refusals

STRATEGIES = ("full", "sliding_window", "attention_sink")
# One prefill is enough here: it is the decode step that is compared.
DEFAULTS = [
    "workload=cost",
    "workload.seq_len=4096",
    "workload.batch=1",
    "workload.n_new_tokens=97",
    "profile.n_prefill_trials=1",
    "profile.n_decode_trials=16",
    "profile.max_cell_s=900",
    "tracking=disabled",
]


class StockCache(DynamicCache):
    """DynamicCache as the Decoder expects a cache: it leaves the model's attention alone."""

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def bytes_held(self) -> int:
        layers: list[Any] = self.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    @property
    def bytes_logical(self) -> int:
        return self.bytes_held


def run(overrides: Sequence[str] = ()) -> list[Record]:
    """Measure all arms together; one record each, written and returned."""
    started = time.perf_counter()
    benches = {strategy: _bench(strategy, overrides) for strategy in STRATEGIES}
    first = benches[STRATEGIES[0]]
    model = first.loaded.model
    arms: dict[str, timing.NewDecoder] = {
        name: partial(bench.arms.technique, bench.cell.n_new_tokens) for name, bench in benches.items()
    }
    arms |= dict.fromkeys(("dynamic", "dynamic_again"), lambda: Decoder(model, StockCache(config=model.config)))
    with timing.pinned_threads(first.experiment.n_threads):
        samples = first.timed(arms)
    reference, again = samples["dynamic"], samples["dynamic_again"]
    wall_s = time.perf_counter() - started
    return [_write(bench, samples[name], reference, again, wall_s) for name, bench in benches.items()]


def _bench(strategy: str, overrides: Sequence[str]) -> Bench:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"strategy={strategy}", *DEFAULTS, *overrides])
    experiment = Experiment.from_hydra(cfg)
    cell = experiment.cells()[0].model_copy(update={"level": "benchmark", "workload": "against_dynamic_cache"})
    with timing.pinned_threads(experiment.n_threads):
        return Bench.of(cell, experiment)


def _write(
    bench: Bench, technique: timing.Samples, reference: timing.Samples, again: timing.Samples, wall_s: float
) -> Record:
    experiment, identity = bench.experiment, hardware.identity()
    measured = Record(
        cell=bench.cell,
        status="ok",
        fingerprint=fingerprint(experiment.resolved, bench.cell, identity),
        config=experiment.resolved,
        environment={
            "hardware_id": hardware.hardware_id(),
            "hardware": identity,
            "versions": versions(),
            "n_threads": experiment.n_threads,
        },
        predicted=bench.predicted,
        cost=bench.summed(technique, reference, again),
        wall_s=wall_s,
    )
    record.write(measured, record.path_of(bench.cell, experiment.results_path, hardware.hardware_id()))
    return measured


def show(records: Sequence[Record]) -> None:
    table = Table("arm", "step p50", "of DynamicCache", "95 % interval", "A/A", box=box.SIMPLE)
    for measured in records:
        cost = measured.cost
        assert cost is not None
        ratio, noise = cost.tpot_ratio, cost.aa_tpot_ratio
        table.add_row(
            measured.cell.strategy,
            f"{1e3 * cost.technique.tpot_s_p50:.2f} ms",
            f"{ratio.estimate:.2f}",
            f"{ratio.low:.2f} … {ratio.high:.2f}",
            f"{noise.low:.2f} … {noise.high:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    with refusals():
        show(run(sys.argv[1:]))
