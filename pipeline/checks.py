"""What can be refused before any work: each raises ValueError with field, value, why, and what would be valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import checkpoints, hardware, models, text
from pipeline.variants import takes_budget

if TYPE_CHECKING:
    from pipeline.config import Experiment, Strategy
    from pipeline.record import Cell

# Two tokens for each fact and each question of `pipeline.tasks`, which needs torch to be asked.
SHORTEST = {
    "single_needle": 4,
    "multi_key_8": 18,
    "multi_key_32": 66,
    "multi_query": 80,
    "variable_tracking": 18,
    "most_frequent": 32,
}
LONGEST_QUESTION = 16  # tokens that follow the prompt where recall is measured: 8 keys are asked for again


def check(experiment: Experiment) -> None:
    _check_device(experiment)
    _check_engine(experiment)
    _check_quality(experiment)
    _check_trials(experiment)
    for cell in experiment.cells():
        _check_budget(experiment, cell)
        _check_room(experiment, cell.seq_len)
    if experiment.model.hard_limit:
        check_positions(experiment, experiment.model.max_seq_len)
    models_of_both = [experiment.model]
    if experiment.reference != experiment.model:
        models_of_both.append(experiment.reference)
    for model in models_of_both:
        models.check(model)
        checkpoints.check(model)
    if experiment.workload.text is not None:
        text.check(experiment.workload.text)


def check_shape(experiment: Experiment) -> None:
    """What only the libraries, the model's files and the technique itself know, by a dry run of the level.

    Importing them takes seconds: for when there is something to measure.
    """
    from hydra.utils import instantiate

    instantiate(experiment.level.dry_run)(experiment)


def _check_device(experiment: Experiment) -> None:
    if experiment.device == "cuda" and not hardware.has_cuda():
        raise ValueError("device=cuda: no CUDA device, or a CPU build of torch; valid here: cpu, auto")


def _check_engine(experiment: Experiment) -> None:
    """Caches are measured in our own loop; what others run is measured as a throughput."""
    if experiment.level.name != "engine" and experiment.engine.name != "ours":
        raise ValueError(
            f"engine={experiment.engine.name}: level={experiment.level.name} measures caches in our own loop; "
            "valid: engine=ours, or workload=throughput"
        )


def _check_quality(experiment: Experiment) -> None:
    if experiment.level.name == "model":
        return  # whose architectures may not have been trained, which is a row of its own
    if "quality" in experiment.workload.measure and experiment.model.source == "random":
        raise ValueError(
            f"model.source=random: random weights of {experiment.model.name} have no quality to measure; "
            "valid: workload=cost, or a trained model such as model=tiny"
        )


def _check_trials(experiment: Experiment) -> None:
    n_steps, n_trials = experiment.workload.n_new_tokens - 1, experiment.profile.n_decode_trials
    if "cost" in experiment.workload.measure and n_steps < n_trials:
        raise ValueError(
            f"workload.n_new_tokens={n_steps + 1}: a warm-up step and one for each of {n_trials} decode trials are "
            f"needed; valid: at least {n_trials + 1}, or fewer profile.n_decode_trials"
        )


def _check_budget(experiment: Experiment, cell: Cell) -> None:
    strategy, budget = experiment.strategy, cell.kv_budget
    if budget is None:
        return
    given = f"strategy.kv_budget={budget}"
    if strategy.kv_budget is None:
        given = f"strategy.keep_ratio={strategy.keep_ratio} (kv_budget={budget} at {cell.seq_len} tokens)"
    if not takes_budget(strategy.name, strategy.schedule):
        valid = "null, or another strategy/schedule" if strategy.schedule else "null"
        raise ValueError(f"{given}: {strategy.name} never evicts; valid: {valid}")
    if strategy.placement and strategy.placement["_target_"].endswith(".Recompute"):
        raise ValueError(
            f"{given}: strategy/placement=recompute holds nothing that strategy/schedule could evict; "
            "valid: strategy.keep_ratio=null strategy.kv_budget=null, or strategy/placement=contiguous"
        )
    if budget == 0:
        raise ValueError(f"{given}: keeps nothing; valid: a ratio that keeps at least one token")
    _check_protected(strategy, budget, given)


def _check_protected(strategy: Strategy, budget: int, given: str) -> None:
    """Tokens that the scorer never gives up must leave room for at least one other."""
    scorer = strategy.scorer or {}
    protected = {name: scorer[name] for name in ("n_sinks", "window_size") if name in scorer}
    for name, value in protected.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"strategy.scorer.{name}={value}: not possible; valid: 1 or more")
    if sum(protected.values()) >= budget:
        named = ", ".join(f"strategy.scorer.{name}={value}" for name, value in protected.items())
        raise ValueError(
            f"{named}: fills {given}; valid: in all below {budget}, or a budget above {sum(protected.values())}"
        )


def _check_room(experiment: Experiment, seq_len: int) -> None:
    """Every fact and every question of every task must fit into the prompt."""
    tasks = experiment.workload.tasks if "quality" in experiment.workload.measure else []
    for task in tasks:
        if seq_len < SHORTEST[task]:
            raise ValueError(
                f"workload.seq_len={seq_len}: too short for {task}; valid: at least {SHORTEST[task]}, "
                "or other workload.tasks"
            )


def check_positions(experiment: Experiment, limit: int | None, longest_question: int = LONGEST_QUESTION) -> None:
    """What follows the prompt needs positions too; scored text lies within the prompt's length."""
    workload = experiment.workload
    n_following = max(
        workload.n_new_tokens if "cost" in workload.measure else 0,
        longest_question if "quality" in workload.measure else 0,
    )
    longest = max(workload.seq_len)
    if limit is not None and longest + n_following > limit:
        raise ValueError(
            f"workload.seq_len={longest}: with {n_following} tokens more, {experiment.model.label} has only {limit} "
            f"positions; valid: at most {limit - n_following}"
        )
