"""What runs a model, beside Transformers one by one and in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hydra.utils import instantiate

from pipeline import models, timing
from pipeline.config import Experiment
from pipeline.engines import turns
from pipeline.engines.host import Host
from pipeline.engines.serving import Engine, Request
from pipeline.levels.measured import Measured
from pipeline.record import Cell, Throughput

OURS = "ours"


def dry_run(experiment: Experiment) -> None:
    """Raises ValueError, one line, for what no engine could run: a workload without requests, requests that do not fit
    the model's positions, weights in another form than they are saved in, and a cache that an engine does not take.
    """
    if experiment.workload.requests is None:
        raise ValueError(
            f"workload.requests=null: level={experiment.level.name} measures a throughput; "
            "valid: workload=throughput, mixed_lengths, shared_prefix, kv_dtypes"
        )
    if experiment.weights.transforms:
        raise ValueError(
            f"weights={experiment.weights.name}: engines read the weights as they were saved; valid: weights=none"
        )
    if experiment.engine.name != OURS and experiment.strategy != experiment.baseline:
        raise ValueError(
            f"strategy={experiment.strategy.variant}: engine={experiment.engine.name} has a cache of its own; "
            f"valid: strategy={experiment.baseline.name}, or engine={OURS}"
        )
    for cell in experiment.cells():
        drawn(cell, experiment)


def drawn(cell: Cell, experiment: Experiment) -> list[Request]:
    """The requests of a cell. Raises ValueError where they do not fit the model's positions."""
    config = models.shape(experiment.model)
    limit = models.n_positions(config)
    made: list[Request] = instantiate(experiment.workload.requests)(cell, config.vocab_size, limit)
    return made


def measure_cell(cell: Cell, experiment: Experiment, *, n_trials: int, max_s: float, n_one_by_one: int) -> Measured:
    """One engine beside the two baselines. Raises what the engine raises, so that it becomes the row's reason."""
    with Host() as host:
        pairs = [(cell, experiment)]
        found_of = measure_point(pairs, host, n_trials=n_trials, max_s=max_s, n_one_by_one=n_one_by_one)
    (found,) = found_of.values()
    if isinstance(found, Exception):
        raise found
    return Measured(throughput=found)


def measure_point(
    members: Sequence[tuple[Cell, Experiment]], host: Host, *, n_trials: int, max_s: float, n_one_by_one: int
) -> dict[Cell, Throughput | Exception]:
    """Cells that differ in engine and strategy only, in turns; of one that fails its error."""
    cell, experiment = members[0]
    found: dict[Cell, Throughput | Exception] = {}
    started: dict[str, Engine] = {}
    named = {f"{own.engine}-{own.strategy}": (own, asked) for own, asked in members}
    with timing.pinned_threads(experiment.n_threads):
        for name, (own, asked) in named.items():
            try:
                started[name] = host.engine(own, asked)
            except Exception as error:
                found[own] = error
        if started:
            plan = turns.Plan(n_trials, max_s, n_one_by_one, experiment.profile.n_bootstrap, cell.seed)
            measured = _in_turns(started, cell, experiment, plan, host)
            found |= {named[name][0]: result for name, result in measured.items()}
    return found


def _in_turns(
    started: Mapping[str, Engine], cell: Cell, experiment: Experiment, plan: turns.Plan, host: Host
) -> Mapping[str, Throughput | Exception]:
    """Where a baseline fails there is nothing to compare with, and no engine has a result."""
    try:
        return turns.measure(started, host.loaded(cell, experiment), drawn(cell, experiment), plan, host)
    except Exception as error:
        return dict.fromkeys(started, error)
