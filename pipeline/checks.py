"""What can be refused before any work: each raises ValueError with field, value, why, and what would be valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import hardware, models

if TYPE_CHECKING:
    from pipeline.config import Experiment, Strategy
    from pipeline.record import Cell


def check(experiment: Experiment) -> None:
    _check_device(experiment)
    _check_quality(experiment)
    _check_trials(experiment)
    for cell in experiment.cells():
        _check_budget(experiment, cell)
        _check_positions(experiment, cell.seq_len)
    models.check(experiment.model)


def _check_device(experiment: Experiment) -> None:
    if experiment.device == "cuda" and not hardware.has_cuda():
        raise ValueError("device=cuda: no CUDA device, or a CPU build of torch; valid here: cpu, auto")


def _check_quality(experiment: Experiment) -> None:
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
    if strategy.schedule == experiment.baseline.schedule:
        raise ValueError(f"{given}: {strategy.name} never evicts; valid: null, or another strategy/schedule")
    if budget == 0:
        raise ValueError(f"{given}: keeps nothing; valid: a ratio that keeps at least one token")
    _check_protected(strategy, budget, given)


def _check_protected(strategy: Strategy, budget: int, given: str) -> None:
    """Tokens that the scorer never gives up must leave room for at least one other."""
    protected = {name: strategy.scorer[name] for name in ("n_sinks", "window_size") if name in strategy.scorer}
    for name, value in protected.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"strategy.scorer.{name}={value}: not possible; valid: 1 or more")
    if sum(protected.values()) >= budget:
        named = ", ".join(f"strategy.scorer.{name}={value}" for name, value in protected.items())
        raise ValueError(
            f"{named}: fills {given}; valid: in all below {budget}, or a budget above {sum(protected.values())}"
        )


def _check_positions(experiment: Experiment, seq_len: int) -> None:
    model, workload = experiment.model, experiment.workload
    if not model.hard_limit or model.max_seq_len is None:
        return
    continued = max(workload.n_new_tokens, workload.n_text_tokens if "quality" in workload.measure else 0)
    if seq_len + continued > model.max_seq_len:
        raise ValueError(
            f"workload.seq_len={seq_len}: with {continued} tokens more, {model.name} has only {model.max_seq_len} "
            f"positions; valid: at most {model.max_seq_len - continued}"
        )
