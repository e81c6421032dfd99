"""What a technique costs and keeps against the full cache; or a model, or its weights, against another."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import baseline, checkpoints, hardware, models, quality, timing
from pipeline.checks import check_positions
from pipeline.config import Experiment
from pipeline.fingerprint import baseline_key
from pipeline.levels.measured import Measured
from pipeline.levels.sides import Side, Sides
from pipeline.memory.costs import predict, weight_bytes
from pipeline.memory.measured import Ceilings, available_bytes, measured_ceilings
from pipeline.memory.weights import held
from pipeline.prompts import prompts
from pipeline.quality import Arms
from pipeline.record import Cell, Cost, Predicted, Quality


def dry_run(experiment: Experiment) -> None:
    """Everything but weights and numbers: prompts are made, and shapes go through models, transforms and caches.

    Raises ValueError, one line, for what no cell could measure: see `models.configured` and `prompts`, positions that
    end too early, and weights, attention or layers that a technique cannot take over. What is skipped for a package or
    weights that are missing, and what depends on data, shows when it is measured.
    """
    if experiment.lacks_trained_weights:
        return  # each cell is a row that says why there are none
    workload = experiment.workload
    for cell in experiment.cells():
        sides = Sides.of(cell, experiment)
        configs = [models.configured(side.spec) for side in sides]
        if configs[0].vocab_size != configs[1].vocab_size:
            raise ValueError(
                f"model={experiment.model.name}: knows {configs[0].vocab_size} words, level.reference="
                f"{experiment.reference.name} {configs[1].vocab_size}; valid: a model of the same words"
            )
        check_positions(experiment, models.n_positions(configs[0]))
        if "quality" in workload.measure:
            given = prompts(experiment.model, workload, cell, n_items=1)
            check_positions(experiment, models.n_positions(configs[0]), given.longest_question)
            _check_vocabulary(experiment, configs[0].vocab_size, given.highest_id)
        for side in sides:
            _try(side, side.held_outline)
            _try(side, side.footprint)


def _check_vocabulary(experiment: Experiment, n_words: int, highest_id: int) -> None:
    if highest_id >= n_words:
        raise ValueError(
            f"model.path={experiment.model.path}: tokenizer.json gives ids up to {highest_id}, the model knows "
            f"{n_words}; valid: the tokenizer of this model"
        )


def _try(side: Side, work: Callable[[], object]) -> None:
    try:
        work()
    except ImportError:
        return
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        why = " ".join(str(error).split())
        if isinstance(error, ValueError) and re.match(r"[\w.]+=", why):
            raise ValueError(why) from None
        name = type(side.outline).__name__
        raise ValueError(f"model={name}: {why}; valid: a causal LM with plain attention in all layers") from None


def measure_cell(cell: Cell, experiment: Experiment) -> Measured:
    """Predict, then measure what the workload asks for; skipped where the prediction alone says that it cannot be."""
    with timing.pinned_threads(experiment.n_threads):
        outlined = Bench.outlined(cell, experiment)
        if skipped := _not_trained(outlined) or _too_much(outlined):
            return skipped
        bench = outlined.loaded()
        return Measured(
            bench.predicted,
            cost=bench.cost() if "cost" in experiment.workload.measure else None,
            quality=bench.quality() if "quality" in experiment.workload.measure else None,
        )


def _not_trained(outlined: Bench) -> Measured | None:
    """Why an architecture has no weights whose quality could be measured; None where it has, or none is asked."""
    model, workload = outlined.experiment.model, outlined.experiment.workload
    if model.source != "random" or "quality" not in workload.measure:
        return None
    story = checkpoints.story_in(models.folder_of(model.path)) if model.path else None
    return Measured(
        outlined.predicted,
        skipped=f"{checkpoints.NOT_TRAINED}: {story['reason']}" if story else "never trained",
        remedy=f"a faster machine or a higher max_s: python -m pipeline.train recipe=architecture model={model.name}",
    )


def _too_much(outlined: Bench) -> Measured | None:
    """Why a cell is skipped before anything of its size is allocated; None where it is not."""
    needed, available = outlined.least_bytes(), available_bytes(outlined.cell.device)
    if needed > available:
        return Measured(
            outlined.predicted,
            skipped=f"needs at least {needed:,} bytes for weights and caches, available are {available:,.0f}",
            remedy="a smaller model, dtype, workload.seq_len or workload.batch; or free memory and run again",
        )
    needed_s, allowed_s = outlined.least_s(), outlined.experiment.profile.max_cell_s
    if needed_s > allowed_s:
        return Measured(
            outlined.predicted,
            skipped=f"needs at least {needed_s:.3g} s at this device's measured speed, allowed are {allowed_s:g} s",
            remedy="a shorter workload.seq_len or a higher profile.max_cell_s",
        )
    return None


@dataclass(frozen=True)
class Bench:
    """One cell with the models and caches of both sides ready to be built."""

    cell: Cell
    experiment: Experiment
    sides: Sides
    model: PreTrainedModel
    reference: PreTrainedModel  # whose cache is the baseline; at most levels the same model
    ceilings: Ceilings
    predicted: Predicted
    predicted_full: Predicted

    @classmethod
    def of(cls, cell: Cell, experiment: Experiment) -> Bench:
        return cls.outlined(cell, experiment).loaded()

    @classmethod
    def outlined(cls, cell: Cell, experiment: Experiment) -> Bench:
        """Good for predictions only: the models have shapes but no weights."""
        sides = Sides.of(cell, experiment)
        sides.give_back_others()
        model, reference = (side.outline for side in sides)
        ceilings = measured_ceilings(model.dtype, cell.device)
        technique, full = (
            predict(
                side.outline,
                side.footprint(),
                seq_len=cell.seq_len,
                batch=cell.batch,
                ceilings=ceilings,
                as_held=side.held_outline(),
            )
            for side in sides
        )
        return cls(cell, experiment, sides, model, reference, ceilings, technique, full)

    def loaded(self) -> Bench:
        model, reference = (side.load() for side in self.sides)
        return replace(self, model=model, reference=reference)

    @cached_property
    def arms(self) -> Arms:
        return Arms(self.sides.technique.arm(self.model), self.sides.full.arm(self.reference))

    def least_bytes(self) -> int:
        """Weights that are not loaded yet, and what the caches hold at their last step; activations come on top."""
        predicted, full = self.predicted, self.predicted_full.kv_bytes_held
        workload = self.experiment.workload
        copied = max(predicted.kv_bytes_held, full)  # one at a time, where the memory of steps is counted
        three_arms = ("cost" in workload.measure) * (predicted.kv_bytes_held + 2 * full + copied)
        n_rows = min(quality.BATCH, max(workload.n_items, workload.n_text_streams))
        one_arm = ("quality" in workload.measure) * n_rows * full // self.cell.batch
        return self._bytes_to_load() + max(three_arms, one_arm)

    def _bytes_to_load(self) -> int:
        """As plain weights, which is how they come whatever they are held in afterwards."""
        sides = [(self.sides.full, self.reference)]
        if not self.sides.share_a_model:
            sides.append((self.sides.technique, self.model))
        return sum(weight_bytes(outline) for side, outline in sides if not side.is_loaded)

    def least_s(self) -> float:
        """Time at the measured ceilings for the least that the workload allows."""
        measure = self.experiment.workload.measure
        return ("cost" in measure) * self._least_cost_s() + ("quality" in measure) * self._least_quality_s()

    def cost(self) -> Cost:
        technique, full = (partial(arm, self.cell.n_new_tokens) for arm in (self.arms.technique, self.arms.full))
        samples = self.timed({"technique": technique, "full": full, "full_again": full})
        return self.summed(**samples)

    def timed(self, arms: dict[str, timing.NewDecoder]) -> dict[str, timing.Samples]:
        """Any arms on this cell's random prompts, paired and interleaved."""
        cell, profile = self.cell, self.experiment.profile
        tokens = self.random_tokens(cell.seq_len + cell.n_new_tokens)
        prompt_BT, stream_BN = tokens.tensor_split([cell.seq_len], dim=1)
        order = zlib.crc32(cell.model_dump_json().encode())  # with the cell's seed, but not the same in all cells
        along = self.experiment.level.name == "study"  # whose figures go over hundreds of steps
        plan = timing.Plan(profile.n_prefill_trials, profile.n_decode_trials, order, profile.max_cell_s, along)
        return timing.measure(arms, prompt_BT, stream_BN, plan)

    def summed(self, technique: timing.Samples, full: timing.Samples, full_again: timing.Samples) -> Cost:
        found = timing.cost(
            technique,
            full,
            full_again,
            batch=self.cell.batch,
            predicted=self.predicted,
            weights=held(self.model),
            weights_full=held(self.reference),
            ceilings=self.ceilings,
            n_bootstrap=self.experiment.profile.n_bootstrap,
            seed=self.cell.seed,
        )
        return found.model_copy(update={"link_bandwidth_bytes_per_s": self.ceilings.link_bandwidth_bytes_per_s})

    @property
    def protocols(self) -> tuple[quality.Protocol, ...]:
        """Whether a question was seen before an eviction makes no difference where both sides have the same cache, and
        it is the models that are compared.
        """
        return quality.PROTOCOLS if self.sides.share_a_model or not self._same_cache else ("query_agnostic",)

    @property
    def _same_cache(self) -> bool:
        return self.cell.kv_budget is None and self.sides.technique.cache == self.sides.full.cache

    def quality(self) -> Quality:
        """Raises ValueError for everything that `prompts` refuses."""
        workload = self.experiment.workload
        given = prompts(self.experiment.model, workload, self.cell, workload.n_items)
        resampling = quality.Resampling(self.experiment.profile.n_bootstrap, self.cell.seed)
        arms = self._with_memory()
        tasks = [
            quality.recall(arms, task, items, protocol, resampling)
            for task, items in given.items.items()
            for protocol in self.protocols
        ]
        streaming = None
        if given.streams is not None:
            streaming = quality.streaming_text(arms, given.streams, given.n_scored, resampling)
        return Quality(text_source=given.text.source, text_sha256=given.text.sha256, tasks=tasks, text=streaming)

    def _with_memory(self) -> Arms:
        """What the full cache said is computed once for all techniques, and for one that is no other not once more."""
        key = baseline_key(self.experiment.resolved, self.cell, hardware.identity())
        technique = self.arms.full if self._same_cache and self.sides.share_a_model else self.arms.technique
        return Arms(technique, self.arms.full, baseline.BaselineFiles(key, baseline.FOLDER).recall)

    def _least_cost_s(self) -> float:
        """One prefill trial of two arms and two decode trials of three."""
        predicted = self.predicted
        n_steps = 1 + 2 * (self.cell.n_new_tokens // self.experiment.profile.n_decode_trials)
        step_s = predicted.decode_floor_s + 2 * self.predicted_full.decode_floor_s
        return 2 * predicted.prefill_floor_s + n_steps * step_s

    def _least_quality_s(self) -> float:
        """Prefill of every item under each protocol, and of every stream, by the technique alone."""
        workload = self.experiment.workload
        n_prompts = len(workload.tasks) * len(self.protocols) * workload.n_items + workload.n_text_streams
        return self.predicted.prefill_floor_s * n_prompts / self.cell.batch

    def random_tokens(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.cell.seed)
        vocab_size = self.model.config.vocab_size
        return torch.randint(vocab_size, (self.cell.batch, n), generator=generator).to(self.cell.device)
