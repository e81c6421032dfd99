"""Paired timing: every arm does the same work on the same tokens, interleaved in random order within each trial.

On CUDA a decode step is timed as one graph; see `pipeline.graphs`.

The unit is the trial: one log-ratio each, and a bootstrap interval over them. An arm that is the reference once more
(A/A) shows the noise floor; where there is time for one prefill only, it goes on from a copy of the reference's.
Shapes: B sequences, T prompt tokens, N tokens to decode.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline import intervals
from pipeline.decoding import Decoder
from pipeline.finite import require_finite
from pipeline.graphs import Graphs
from pipeline.memory.measured import Ceilings, peak_growths
from pipeline.record import Arm, Cost, Predicted

NewDecoder = Callable[[], Decoder]  # an arm: each call starts afresh
WARM_UP_TOKENS = {"cpu": 64, "cuda": 8192}  # of the prompt, before prefill is timed: kernels go by size on a GPU
WARM_UP_STEPS = 1  # before decode is timed
COUNTING_S = 0.35  # after which the memory of no further step is counted; the first one always is
N_LAUNCHED = 40  # steps that are launched before any is captured: an encoding by groups does not do the same in each


@dataclass(frozen=True)
class Plan:
    """How much is measured. Trials end early, for all arms alike, when the next would not fit into `max_s` seconds: a
    quarter of them for prefill, half for decode.
    """

    n_prefill_trials: int
    n_decode_trials: int
    seed: int
    max_s: float = float("inf")
    counts_along: bool = False  # peak memory: of the first step of every decode trial, not of the first steps alone


@dataclass
class Samples:
    """Everything one arm did, in order; units in the names."""

    ttft_s: list[float] = field(default_factory=list)
    block_step_s: list[list[float]] = field(default_factory=list)
    launched_step_s: list[float] = field(default_factory=list)  # where those of block_step_s are graphs
    kv_bytes_held: list[int] = field(default_factory=list)
    kv_bytes_logical: int = 0
    kv_bytes_offloaded: int = 0
    peak_growth_bytes: list[int] = field(default_factory=list)  # of prefill with the warm-up, then of counted_steps
    counted_steps: list[int] = field(default_factory=list)

    @property
    def tpot_s(self) -> list[float]:
        return [float(np.mean(block)) for block in self.block_step_s]


class Stopwatch:
    """Seconds on the device's own clock: CUDA events where there are any, so that a step is not made to wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        started = self._mark()
        yield
        self._marks.append((started, self._mark()))

    def seconds(self) -> list[float]:
        if self._cuda:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1e3 for start, end in self._marks]  # type: ignore[union-attr, arg-type]
        return [end - start for start, end in self._marks]  # type: ignore[operator]

    def _mark(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextmanager
def pinned_threads(n_threads: int) -> Iterator[None]:
    """Give torch exactly `n_threads` for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """No collection falls into a timed step. What exists is set aside, which makes collecting by hand cheap."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def trial_orders(
    names: Sequence[str], n_trials: int, rng: np.random.Generator, max_s: float, at_least: int = 1
) -> Iterator[list[str]]:
    """A random order of the arms for each trial; ends early when another trial as long as the mean would not fit."""
    started = time.perf_counter()
    for trial in range(n_trials):
        if trial >= at_least and (time.perf_counter() - started) * (trial + 1) / trial > max_s:
            return
        yield [names[i] for i in rng.permutation(len(names))]


def measure(arms: Mapping[str, NewDecoder], prompt_BT: Tensor, stream_BN: Tensor, plan: Plan) -> dict[str, Samples]:
    """Time prefill and decode of all arms, after an untimed prefill by each of the start of the prompt.

    Decode continues the last prefill with the tokens of `stream_BN`: untimed warm-up steps, then blocks of nearly equal
    length, one for each decode trial.
    """
    valid = plan.n_decode_trials + WARM_UP_STEPS
    if stream_BN.shape[1] < valid:
        raise ValueError(f"n_new_tokens={stream_BN.shape[1]}: too few for the decode trials; valid: >= {valid}")
    with no_garbage_collection():
        return _measure(arms, prompt_BT, stream_BN, plan)


def _measure(arms: Mapping[str, NewDecoder], prompt_BT: Tensor, stream_BN: Tensor, plan: Plan) -> dict[str, Samples]:
    _warm_up(arms, prompt_BT)
    rng = np.random.default_rng(plan.seed)
    samples = {name: Samples() for name in arms}
    decoders = _prefilled(arms, prompt_BT, stream_BN, samples, plan, rng)
    decode_BN = stream_BN[:, WARM_UP_STEPS:]
    graphs = _graphs(arms, decoders, decode_BN, samples) if prompt_BT.is_cuda else None
    if not plan.counts_along:
        _count_memory(arms, decoders, decode_BN, samples)
    orders = trial_orders(list(arms), plan.n_decode_trials, rng, plan.max_s / 2, at_least=2)
    for order, block_BN in zip(orders, decode_BN.tensor_split(plan.n_decode_trials, dim=1), strict=False):
        if plan.counts_along:
            _count_memory(arms, decoders, block_BN[:, :1], samples)
        for name in order:
            _time_decode(decoders[name], block_BN, samples[name], graphs)
    return samples


def _warm_up(arms: Mapping[str, NewDecoder], prompt_BT: Tensor) -> None:
    """The first call of anything pays for kernels and pages; the start of the prompt is enough to pay for them."""
    start_BT = prompt_BT[:, : WARM_UP_TOKENS[prompt_BT.device.type]]
    for new_decoder in arms.values():
        with new_decoder() as decoder:
            decoder.foresee(torch.cat([start_BT, start_BT[:, -1:]], dim=1), start_BT.shape[1])
            decoder.feed(start_BT)


def _prefilled(
    arms: Mapping[str, NewDecoder],
    prompt_BT: Tensor,
    stream_BN: Tensor,
    samples: Mapping[str, Samples],
    plan: Plan,
    rng: np.random.Generator,
) -> dict[str, Decoder]:
    """All arms after their last timed prefill and the warm-up steps.

    An arm that is there twice comes last in the first trial, once it is known whether there is time for a second one.
    """
    decoders: dict[str, Decoder] = {}
    again = _again(arms)
    max_s, started = plan.max_s / 4, time.perf_counter()
    for trial, order in enumerate(trial_orders(list(arms), plan.n_prefill_trials, rng, max_s)):
        for n_done, name in enumerate(order if trial else sorted(order, key=again.__contains__)):
            trial_s = (time.perf_counter() - started) / max(n_done, 1) * len(order)
            if trial == 0 and name in again and (plan.n_prefill_trials == 1 or 2 * trial_s > max_s):
                return decoders | {twin: _copied(original, decoders, samples, twin) for twin, original in again.items()}
            decoders.pop(name, None)
            decoders[name] = _time_prefill(arms[name], prompt_BT, stream_BN, samples[name])
    return decoders


def _again(arms: Mapping[str, NewDecoder]) -> dict[str, str]:
    """Arms that an earlier one is already, by name, and which one that is."""
    first: dict[NewDecoder, str] = {}
    return {name: original for name, arm in arms.items() if (original := first.setdefault(arm, name)) != name}


def _copied(original: str, decoders: Mapping[str, Decoder], samples: Mapping[str, Samples], twin: str) -> Decoder:
    """What prefill left of `original`, for its twin; a time to the first token is no sample of the twin's own."""
    samples[twin].kv_bytes_held = list(samples[original].kv_bytes_held)
    samples[twin].peak_growth_bytes = list(samples[original].peak_growth_bytes)
    return _copy(decoders[original])


def _time_prefill(new_decoder: NewDecoder, prompt_BT: Tensor, stream_BN: Tensor, samples: Samples) -> Decoder:
    """One prefill to the first token, then untimed warm-up steps; in the first trial also the peak memory of both."""
    gc.collect()  # the previous trial's cache
    decoder = new_decoder()
    device = prompt_BT.device
    watch = Stopwatch(device)
    warm_up_BN = stream_BN[:, :WARM_UP_STEPS]

    def run() -> Iterator[None]:
        with watch.lap():
            logits = decoder.feed(prompt_BT)
            logits.argmax(-1)
        samples.kv_bytes_held = [decoder.kv_bytes_held]
        require_finite(logits, new_decoder, [prompt_BT])
        decoder.teacher_force(warm_up_BN)
        yield

    with decoder:
        decoder.foresee(torch.cat([prompt_BT, stream_BN], dim=1), prompt_BT.shape[1])
        if not samples.peak_growth_bytes:  # it does not differ between trials, and counting takes a little time
            samples.peak_growth_bytes = peak_growths(run(), device.type)
        else:
            list(run())
    samples.ttft_s += watch.seconds()
    return decoder


def _count_memory(
    arms: Mapping[str, NewDecoder], decoders: Mapping[str, Decoder], decode_BN: Tensor, samples: Mapping[str, Samples]
) -> None:
    """The peak memory of the steps that are timed afterwards; of an arm that is there twice, once."""
    counted: dict[NewDecoder, list[int]] = {}
    for name, new_decoder in arms.items():
        if new_decoder not in counted:
            _copying, *steps = peak_growths(untimed_steps(decoders[name], decode_BN), decode_BN.device.type)
            counted[new_decoder] = steps
            gc.collect()  # the copy
        first = len(samples[name].kv_bytes_held)
        samples[name].counted_steps += range(first, first + len(counted[new_decoder]))
        samples[name].peak_growth_bytes += counted[new_decoder]


def untimed_steps(decoder: Decoder, tokens_BN: Tensor) -> Iterator[None]:
    """Copy the decoder, then let the copy decode: prefill is not computed again, and the original stays as it is."""
    with _copy(decoder) as again:
        yield
        started = time.perf_counter()
        for tokens_B1 in tokens_BN.split(1, dim=1):
            again.feed(tokens_B1).argmax(-1)
            yield
            if time.perf_counter() - started > COUNTING_S:
                return


def _copy(decoder: Decoder) -> Decoder:
    return copy.deepcopy(decoder, {id(part): part for part in _not_copied(decoder)})


def _not_copied(decoder: Decoder) -> Iterator[object]:
    """The model, which every cache belongs to, and a cache's streams, which cannot be copied."""
    yield from decoder.model.modules()
    yield from decoder.model.parameters()
    yield from (part for part in getattr(decoder.cache, "__dict__", {}).values() if isinstance(part, torch.Stream))


def _graphs(
    arms: Mapping[str, NewDecoder], decoders: Mapping[str, Decoder], decode_BN: Tensor, samples: Mapping[str, Samples]
) -> Graphs | None:
    """For the steps that are timed afterwards, once each arm has launched such steps from Python.

    What happens for the first time, a compilation say, cannot happen in a capture. And how long a step takes when it is
    launched so is a result: it is what a loop without graphs waits for. None where a step of any arm cannot be
    captured, since it waits for the device or for the host: then all are launched from Python.
    """
    graphs: Graphs | None = Graphs()
    launched: dict[NewDecoder, list[float]] = {}
    for name, new_decoder in arms.items():
        if graphs is None or new_decoder in launched:
            continue
        try:
            launched[new_decoder] = _launched(decoders[name], decode_BN[:, :N_LAUNCHED], graphs)
        except RuntimeError:  # a memory that is full will be so again, where it is an error
            graphs = None
        gc.collect()  # the copy
    if graphs is not None:
        for name, new_decoder in arms.items():
            samples[name].launched_step_s = launched[new_decoder]
    torch.cuda.empty_cache()  # for the memory of graphs, which does not come from what is unused
    return graphs


def _launched(decoder: Decoder, tokens_BN: Tensor, graphs: Graphs) -> list[float]:
    """Seconds of each step of a copy, until the device is done with it; the last one is captured, to see that it can.

    Raises RuntimeError where it cannot.
    """
    if not decoder.stays_on_device:
        raise RuntimeError("a part of each step is the host's")
    taken: list[float] = []
    *first, last = tokens_BN.split(1, dim=1)
    with _copy(decoder) as again:
        for tokens_B1 in first:
            torch.cuda.synchronize()
            started = time.perf_counter()
            _step(again, tokens_B1)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        graphs.captured(partial(_step, again, last))()
    return taken


def _time_decode(decoder: Decoder, tokens_BN: Tensor, samples: Samples, graphs: Graphs | None) -> None:
    """One block of steps, each fed one given token: all arms do the same work, whatever they would have said."""
    watch = Stopwatch(tokens_BN.device)
    with decoder:
        for tokens_B1 in tokens_BN.split(1, dim=1):
            step: Callable[[], object] = partial(_step, decoder, tokens_B1)
            if graphs is not None:
                step = graphs.captured(step)
            with watch.lap():
                step()
            samples.kv_bytes_held.append(decoder.kv_bytes_held)
    samples.block_step_s.append(watch.seconds())
    samples.kv_bytes_logical, samples.kv_bytes_offloaded = decoder.kv_bytes_logical, decoder.kv_bytes_offloaded


def _step(decoder: Decoder, tokens_B1: Tensor) -> None:
    decoder.feed(tokens_B1).argmax(-1)


def cost(
    technique: Samples,
    full: Samples,
    full_again: Samples,
    *,
    batch: int,
    predicted: Predicted,
    weights: dict[str, int],
    weights_full: dict[str, int],
    ceilings: Ceilings,
    n_bootstrap: int,
    seed: int,
) -> Cost:
    """Samples of one cell, summed up for its record; `predicted` is the technique's, weights are bytes by component."""

    def ratio(arm: Samples, kind: str) -> intervals.Interval:
        return intervals.ratio(getattr(arm, kind), getattr(full, kind), n_bootstrap, seed)

    arm = summarise(technique, batch, weights)
    return Cost(
        technique=arm,
        full=summarise(full, batch, weights_full),
        full_again=summarise(full_again, batch, weights_full),
        ttft_ratio=ratio(technique, "ttft_s"),
        tpot_ratio=ratio(technique, "tpot_s"),
        aa_ttft_ratio=ratio(full_again, "ttft_s") if full_again.ttft_s else None,
        aa_tpot_ratio=ratio(full_again, "tpot_s"),
        copy_bandwidth_bytes_per_s=ceilings.copy_bandwidth_bytes_per_s,
        matmul_flop_per_s=ceilings.matmul_flop_per_s,
        decode_bandwidth_share=predicted.decode_bytes_per_step / ceilings.copy_bandwidth_bytes_per_s / arm.tpot_s_p50,
        prefill_flop_share=predicted.prefill_floor_s / arm.ttft_s_p50,
    )


def summarise(samples: Samples, batch: int, weights: dict[str, int]) -> Arm:
    steps = [step for block in samples.block_step_s for step in block]
    peaks = [sum(weights.values()) + growth for growth in samples.peak_growth_bytes]
    return Arm(
        ttft_s=samples.ttft_s,
        tpot_s=samples.tpot_s,
        step_s=steps,
        launched_step_s_p50=float(np.median(samples.launched_step_s)) if samples.launched_step_s else None,
        weight_bytes=weights,
        kv_bytes_held=samples.kv_bytes_held,
        kv_bytes_logical=samples.kv_bytes_logical,
        kv_bytes_offloaded=samples.kv_bytes_offloaded,
        peak_memory_bytes=max(peaks, default=None),
        step_peak_memory_bytes=peaks,
        counted_steps=[0, *samples.counted_steps],
        ttft_s_p50=float(np.percentile(samples.ttft_s or [np.nan], 50)),
        ttft_s_p90=float(np.percentile(samples.ttft_s or [np.nan], 90)),
        tpot_s_p50=float(np.percentile(steps, 50)),
        tpot_s_p90=float(np.percentile(steps, 90)),
        decode_tokens_per_s=batch * len(steps) / sum(steps),
    )
