"""Token level: one KV-cache technique against the full cache, what it costs and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from pipeline import corpus, models, quality, timing
from pipeline.config import Experiment
from pipeline.decoding import Decoder
from pipeline.memory import Ceilings, measured_ceilings, predict, prefill_flop
from pipeline.record import Cell, Cost, Predicted, Quality
from pipeline.tasks import recall_items

_loaded: dict[tuple[object, ...], models.LoadedModel] = {}  # the last one: a grid stays with one model


@dataclass(frozen=True)
class Measured:
    """What one cell gave. `skipped` says why nothing was run, `remedy` what would help; both are empty otherwise."""

    predicted: Predicted
    cost: Cost | None = None
    quality: Quality | None = None
    skipped: str = ""
    remedy: str = ""


def measure_cell(cell: Cell, experiment: Experiment) -> Measured:
    """Predict, then measure what the workload asks for; skipped when even the prediction exceeds profile.max_cell_s."""
    with timing.pinned_threads(experiment.n_threads):
        bench = Bench.of(cell, experiment)
        needed_s, allowed_s = bench.least_s(), experiment.profile.max_cell_s
        if needed_s > allowed_s:
            return Measured(
                bench.predicted,
                skipped=f"needs at least {needed_s:.3g} s at this device's measured speed, allowed are {allowed_s:g} s",
                remedy="a shorter workload.seq_len or a higher profile.max_cell_s",
            )
        return Measured(
            bench.predicted,
            cost=bench.cost() if "cost" in experiment.workload.measure else None,
            quality=bench.quality() if "quality" in experiment.workload.measure else None,
        )


@dataclass(frozen=True)
class Bench:
    """One cell with its model loaded and both caches ready to be built."""

    cell: Cell
    experiment: Experiment
    loaded: models.LoadedModel
    arms: quality.Arms
    ceilings: Ceilings

    @classmethod
    def of(cls, cell: Cell, experiment: Experiment) -> Bench:
        loaded = _load(experiment, cell)
        technique = instantiate(experiment.resolved["engine"]["cache"])
        full = instantiate(_baseline(experiment.resolved))
        arms = quality.Arms(
            technique=partial(_new_decoder, loaded.model, technique, cell.kv_budget),
            full=partial(_new_decoder, loaded.model, full, None),
        )
        return cls(cell, experiment, loaded, arms, measured_ceilings(loaded.model.dtype, cell.device))

    @property
    def recomputes(self) -> bool:
        return self.arms.technique(0).cache is None

    @property
    def predicted(self) -> Predicted:
        n_seen = self.cell.seq_len + self.cell.n_new_tokens
        held = 0 if self.recomputes else min(n_seen, self.cell.kv_budget or n_seen)
        return self._predict(held)

    def least_s(self) -> float:
        """Time at the measured ceilings for the least that the workload allows: no real run is faster."""
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
        plan = timing.Plan(profile.n_prefill_trials, profile.n_decode_trials, cell.seed, profile.max_cell_s)
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
        """Raises ValueError for a model that came without a tokenizer."""
        if self.loaded.tokenizer_path is None:
            raise ValueError(f"model={self.loaded.name}: has no tokenizer.json, so no text; valid: workload=cost")
        text = corpus.held_out_tokens(self.loaded.tokenizer_path)
        cell, workload = self.cell, self.experiment.workload
        resampling = quality.Resampling(self.experiment.profile.n_bootstrap, cell.seed)
        tasks = []
        for task in workload.tasks:
            items = recall_items(task, cell.seq_len, workload.n_items, cell.seed, text)
            tasks += [quality.recall(self.arms, task, items, protocol, resampling) for protocol in quality.PROTOCOLS]
        streaming = None
        if workload.n_text_streams:
            streams = quality.text_streams(text, cell.seq_len, workload.n_text_streams, workload.n_text_tokens)
            streaming = quality.streaming_text(self.arms, streams, workload.n_text_tokens, resampling)
        return Quality(corpus_sha256=corpus.corpus_sha256(), tasks=tasks, text=streaming)

    def _predict(self, kv_len: int) -> Predicted:
        return predict(
            self.loaded.model,
            self.loaded.weight_bytes,
            seq_len=self.cell.seq_len,
            batch=self.cell.batch,
            kv_len=kv_len,
            ceilings=self.ceilings,
        )

    def _least_cost_s(self) -> float:
        """One prefill trial and two decode trials of three arms."""
        predicted, full = self.predicted, self._predict(self.cell.seq_len)
        step_s = predicted.prefill_floor_s if self.recomputes else predicted.decode_floor_s
        n_steps = 1 + 2 * (self.cell.n_new_tokens // self.experiment.profile.n_decode_trials)
        return 3 * predicted.prefill_floor_s + n_steps * (step_s + 2 * full.decode_floor_s)

    def _least_quality_s(self) -> float:
        """Prefill of every item under both protocols, and of every stream, by both arms."""
        workload = self.experiment.workload
        n_prompts = len(workload.tasks) * len(quality.PROTOCOLS) * workload.n_items + workload.n_text_streams
        flop = prefill_flop(self.loaded.model, self.cell.seq_len, batch=2 * n_prompts)
        return flop / self.ceilings.matmul_flop_per_s

    def _random_tokens(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.cell.seed)
        vocab_size = self.loaded.model.config.vocab_size
        return torch.randint(vocab_size, (self.cell.batch, n), generator=generator).to(self.cell.device)


def _new_decoder(model: Any, build: Any, kv_budget: int | None, headroom: int) -> Decoder:
    return Decoder(model, build(model=model, kv_budget=kv_budget, headroom=headroom))


def _baseline(resolved: dict[str, Any]) -> dict[str, Any]:
    """The engine's cache with every axis as the baseline strategy has it."""
    cache = resolved["engine"]["cache"]
    return {name: resolved["baseline"].get(name, value) for name, value in cache.items()}


def _load(experiment: Experiment, cell: Cell) -> models.LoadedModel:
    key = (experiment.model.model_dump_json(), cell.dtype, cell.device, cell.seed)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = models.load(experiment.model, cell.dtype, cell.device, cell.seed)
    return _loaded[key]
