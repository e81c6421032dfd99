"""Token level: one KV-cache technique against the full cache, what it costs and what it keeps."""

from __future__ import annotations

import gc
import re
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import calibration, models, quality, timing
from pipeline.checks import check_positions
from pipeline.config import Experiment, Model
from pipeline.decoding import Decoder
from pipeline.memory import Ceilings, available_bytes, measured_ceilings, predict, prefill_flop
from pipeline.prompts import prompts
from pipeline.record import Cell, Cost, Predicted, Quality

_loaded: dict[tuple[object, ...], models.LoadedModel] = {}  # the last one: a grid stays with one model


@dataclass(frozen=True)
class Measured:
    """What one cell gave. `skipped` says why nothing was run, `remedy` what would help; both are empty otherwise."""

    predicted: Predicted
    cost: Cost | None = None
    quality: Quality | None = None
    skipped: str = ""
    remedy: str = ""


def dry_run(experiment: Experiment) -> None:
    """Everything but weights and numbers: prompts are made, and shapes go through the model and both caches.

    Raises ValueError, one line, for what no cell could measure: see `models.configured` and `prompts`, positions that
    end too early, and attention or layers that a technique cannot take over. What is skipped for a package that is
    missing, and what depends on data, shows when it is measured.
    """
    workload = experiment.workload
    model = models.outline(experiment.model, experiment.dtype)
    check_positions(experiment, models.n_positions(model.config))
    for cell in experiment.cells():
        if "quality" in workload.measure:
            given = prompts(experiment.model, workload, cell, n_items=1)
            check_positions(experiment, models.n_positions(model.config), given.longest_question)
            _check_vocabulary(experiment, model, given.highest_id)
        arms = _arms(model, cell, experiment)
        for new_decoder in (arms.technique, arms.full):
            _try(new_decoder, model, cell)


def _check_vocabulary(experiment: Experiment, model: PreTrainedModel, highest_id: int) -> None:
    if highest_id >= model.config.vocab_size:
        raise ValueError(
            f"model.path={experiment.model.path}: tokenizer.json gives ids up to {highest_id}, the model knows "
            f"{model.config.vocab_size}; valid: the tokenizer of this model"
        )


def _try(new_decoder: quality.NewDecoder, model: PreTrainedModel, cell: Cell) -> None:
    """A prompt and one step on the meta device, where they take no memory and hardly any time."""
    name = type(model).__name__
    try:
        with models.quiet(), new_decoder(1) as decoder:
            for n_tokens in (cell.seq_len, 1):
                decoder.feed(torch.zeros(cell.batch, n_tokens, dtype=torch.long, device="meta"))
    except (ImportError, RuntimeError):  # RuntimeError: also what is not implemented, and what asks tensors for values
        return
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        why = " ".join(str(error).split())
        if isinstance(error, ValueError) and re.match(r"[\w.]+=", why):
            raise ValueError(why) from None
        raise ValueError(f"model={name}: {why}; valid: a causal LM with plain attention in all layers") from None


def measure_cell(cell: Cell, experiment: Experiment) -> Measured:
    """Predict, then measure what the workload asks for; skipped where the prediction alone says that it cannot be."""
    with timing.pinned_threads(experiment.n_threads):
        skipped = _too_much(Bench.outlined(cell, experiment))
        if skipped is not None:
            return skipped
        bench = Bench.of(cell, experiment)
        return Measured(
            bench.predicted,
            cost=bench.cost() if "cost" in experiment.workload.measure else None,
            quality=bench.quality() if "quality" in experiment.workload.measure else None,
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
    """One cell with its model and both caches ready to be built."""

    cell: Cell
    experiment: Experiment
    model: PreTrainedModel
    arms: quality.Arms
    ceilings: Ceilings

    @classmethod
    def of(cls, cell: Cell, experiment: Experiment) -> Bench:
        return cls._with(_load(experiment, cell).model, cell, experiment)

    @classmethod
    def outlined(cls, cell: Cell, experiment: Experiment) -> Bench:
        """Good for predictions only: where the model is not loaded yet, it has shapes but no weights."""
        return cls._with(_outline(experiment, cell), cell, experiment)

    @classmethod
    def _with(cls, model: PreTrainedModel, cell: Cell, experiment: Experiment) -> Bench:
        return cls(cell, experiment, model, _arms(model, cell, experiment), measured_ceilings(model.dtype, cell.device))

    @property
    def predicted(self) -> Predicted:
        recomputes = self.arms.technique(1).cache is None
        return self._predict(kv_budget=self.cell.kv_budget, recomputes=recomputes)

    @property
    def predicted_full(self) -> Predicted:
        return self._predict(kv_budget=None, recomputes=False)

    def least_bytes(self) -> int:
        """Weights that are not loaded yet, and what the caches hold at their last step; activations come on top."""
        predicted, full = self.predicted, self.predicted_full.kv_bytes_held
        weights = predicted.weight_bytes if self.model.device.type == "meta" else 0
        workload = self.experiment.workload
        copied = max(predicted.kv_bytes_held, full)  # one at a time, where the memory of steps is counted
        three_arms = ("cost" in workload.measure) * (predicted.kv_bytes_held + 2 * full + copied)
        n_rows = min(quality.BATCH, max(workload.n_items, workload.n_text_streams))
        one_arm = ("quality" in workload.measure) * n_rows * full // self.cell.batch
        return weights + max(three_arms, one_arm)

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
        tokens = self._random_tokens(cell.seq_len + cell.n_new_tokens)
        prompt_BT, stream_BN = tokens.tensor_split([cell.seq_len], dim=1)
        order = zlib.crc32(cell.model_dump_json().encode())  # with the cell's seed, but not the same in all cells
        plan = timing.Plan(profile.n_prefill_trials, profile.n_decode_trials, order, profile.max_cell_s)
        return timing.measure(arms, prompt_BT, stream_BN, plan)

    def summed(self, technique: timing.Samples, full: timing.Samples, full_again: timing.Samples) -> Cost:
        return timing.cost(
            technique,
            full,
            full_again,
            batch=self.cell.batch,
            predicted=self.predicted,
            ceilings=self.ceilings,
            n_bootstrap=self.experiment.profile.n_bootstrap,
            seed=self.cell.seed,
        )

    def quality(self) -> Quality:
        """Raises ValueError for everything that `prompts` refuses."""
        workload = self.experiment.workload
        given = prompts(self.experiment.model, workload, self.cell, workload.n_items)
        resampling = quality.Resampling(self.experiment.profile.n_bootstrap, self.cell.seed)
        tasks = [
            quality.recall(self.arms, task, items, protocol, resampling)
            for task, items in given.items.items()
            for protocol in quality.PROTOCOLS
        ]
        streaming = None
        if given.streams is not None:
            streaming = quality.streaming_text(self.arms, given.streams, given.n_scored, resampling)
        return Quality(text_source=given.text.source, text_sha256=given.text.sha256, tasks=tasks, text=streaming)

    def _predict(self, *, kv_budget: int | None, recomputes: bool) -> Predicted:
        return predict(
            self.model,
            seq_len=self.cell.seq_len,
            batch=self.cell.batch,
            n_new_tokens=self.cell.n_new_tokens,
            kv_budget=kv_budget,
            recomputes=recomputes,
            ceilings=self.ceilings,
        )

    def _least_cost_s(self) -> float:
        """One prefill trial and two decode trials of three arms."""
        predicted = self.predicted
        n_steps = 1 + 2 * (self.cell.n_new_tokens // self.experiment.profile.n_decode_trials)
        step_s = predicted.decode_floor_s + 2 * self.predicted_full.decode_floor_s
        return 3 * predicted.prefill_floor_s + n_steps * step_s

    def _least_quality_s(self) -> float:
        """Prefill of every item under both protocols, and of every stream, by both arms."""
        workload = self.experiment.workload
        n_prompts = len(workload.tasks) * len(quality.PROTOCOLS) * workload.n_items + workload.n_text_streams
        flop = prefill_flop(self.model, self.cell.seq_len, batch=2 * n_prompts)
        return flop / self.ceilings.matmul_flop_per_s

    def _random_tokens(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.cell.seed)
        vocab_size = self.model.config.vocab_size
        return torch.randint(vocab_size, (self.cell.batch, n), generator=generator).to(self.cell.device)


def _arms(model: PreTrainedModel, cell: Cell, experiment: Experiment) -> quality.Arms:
    technique, full = (instantiate(experiment.resolved[arm]["cache"]) for arm in ("strategy", "baseline"))
    return quality.Arms(
        technique=partial(_new_decoder, model, experiment.model, technique, cell.kv_budget),
        full=partial(_new_decoder, model, experiment.model, full, None),
    )


def _new_decoder(model: Any, spec: Model, build: Any, kv_budget: int | None, headroom: int) -> Decoder:
    calibration.ensure(build, model, spec)
    return Decoder(model, build(model=model, kv_budget=kv_budget, headroom=headroom))


def _outline(experiment: Experiment, cell: Cell) -> PreTrainedModel:
    """The loaded model; where it is not loaded, its shape alone, and another one's memory is given back."""
    if loaded := _loaded.get(_key(experiment, cell)):
        return loaded.model
    _loaded.clear()
    gc.collect()
    return models.outline(experiment.model, cell.dtype)


def _load(experiment: Experiment, cell: Cell) -> models.LoadedModel:
    key = _key(experiment, cell)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = models.load(experiment.model, cell.dtype, cell.device, cell.seed)
    return _loaded[key]


def _key(experiment: Experiment, cell: Cell) -> tuple[object, ...]:
    return experiment.model.model_dump_json(), cell.dtype, cell.device, cell.seed
