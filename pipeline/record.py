"""The record: what one cell was, what was measured, and everything needed to judge it.

One cell is one JSON file. Units are in the field names; raw samples stay beside their summaries.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Result = TypeVar("Result", bound=BaseModel)


class _Frozen(BaseModel):
    # A measurement may be undefined (a ratio to zero), so infinities and NaN survive the round trip.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Cell(_Frozen):
    """The coordinates of one measurement; two cells with equal coordinates are the same cell."""

    level: str
    model: str
    strategy: str
    weights: str
    engine: str
    workload: str
    seq_len: int
    batch: int
    n_new_tokens: int
    kv_budget: int | None  # tokens per KV head, mean over layers; None keeps everything
    dtype: str
    device: str
    seed: int

    @property
    def technique(self) -> str:
        """What is measured: the strategy, and weights and engine where they are not the usual ones."""
        others = {"weights": self.weights.removeprefix("none"), "engine": self.engine.removeprefix("ours")}
        return " ".join([self.strategy, *(f"{axis}={name}" for axis, name in others.items() if name)])

    @property
    def slug(self) -> str:
        """File name without suffix, unique within one hardware × level × strategy folder."""
        budget = "all" if self.kv_budget is None else self.kv_budget
        return (
            f"{self.model}-{self.weights}-{self.engine}-{self.workload}-t{self.seq_len}-b{self.batch}"
            f"-n{self.n_new_tokens}-k{budget}-{self.dtype}-{self.device}-s{self.seed}"
        )


class Interval(_Frozen):
    """A point estimate with its 95 % bootstrap interval over `n` paired samples."""

    estimate: float
    low: float
    high: float
    n: int


class Predicted(_Frozen):
    """The cost computed from shapes alone, before anything ran."""

    weight_bytes: int
    kv_bytes_per_token: int  # full cache, one sequence, all layers that hold every token
    kv_bytes_held: int  # at the last step, whole batch, everything that is allocated
    decode_bytes_per_step: int  # weights + keys and values kept half-way through decoding, read once
    decode_floor_s: float  # at the measured copy bandwidth; where every step recomputes, at least a prefill's floor
    prefill_flop: float
    prefill_floor_s: float  # prefill_flop / measured FLOP/s


class Arm(_Frozen):
    """One of the things that ran interleaved: raw samples and what they add up to."""

    ttft_s: list[float]  # one per prefill trial; empty where another arm's prefill was copied
    tpot_s: list[float]  # mean seconds per decode step, one per decode trial
    step_s: list[float]  # every decode step, in order
    launched_step_s_p50: float | None = None  # where those are CUDA graphs: of a step that Python launches
    weight_bytes: dict[str, int] = {}  # by component, of the tensors that hold them
    kv_bytes_held: list[int]  # after every decode step; the first entry is right after prefill
    kv_bytes_logical: int  # bytes of the tokens that are kept, after the last step
    kv_bytes_offloaded: int  # outside the model's device after the last step, beside those held
    peak_memory_bytes: int | None  # the most of step_peak_memory_bytes
    # Weights + the most that tensors took at once: first in prefill, then in each of the counted steps.
    step_peak_memory_bytes: list[int]
    counted_steps: list[int] = []  # which those are, 0 is prefill; empty: one after another from there
    ttft_s_p50: float  # NaN where there is no sample
    ttft_s_p90: float
    tpot_s_p50: float
    tpot_s_p90: float
    decode_tokens_per_s: float  # whole batch

    @property
    def peak_memory_by_step(self) -> dict[int, int]:
        steps = self.counted_steps or range(len(self.step_peak_memory_bytes))
        return dict(zip(steps, self.step_peak_memory_bytes, strict=True))


class Cost(_Frozen):
    """Paired against the full cache in one process; a ratio below 1 means faster than the full cache."""

    technique: Arm
    full: Arm
    full_again: Arm  # the same work as `full`, timed as an arm of its own (A/A)
    ttft_ratio: Interval
    tpot_ratio: Interval
    aa_ttft_ratio: Interval | None  # full_again / full: the noise floor; None where full_again copied its prefill
    aa_tpot_ratio: Interval
    copy_bandwidth_bytes_per_s: float  # measured in the same process
    matmul_flop_per_s: float
    link_bandwidth_bytes_per_s: float | None = None  # from the host's memory to the device; None where that is the host
    decode_bandwidth_share: float  # achieved / measured bandwidth, of the bytes the step must read
    prefill_flop_share: float


class Items(_Frozen):
    """What every item (or text stream) scored, in order: its mean over the tokens that were asked."""

    depth: list[float]  # where the needle lay, 0 is the start of the context; empty for text
    correct: list[float]
    correct_full: list[float]
    nll: list[float]  # nats
    nll_full: list[float]


class TaskQuality(_Frozen):
    """One recall task under one protocol, paired item by item with the full cache."""

    task: str
    protocol: Literal["query_aware", "query_agnostic"]
    n_items: int
    items: Items
    kv_bytes_held: int  # of one item, after its last token
    kv_bytes_held_full: int
    kv_bytes_offloaded: int  # outside the model's device, beside those held
    accuracy: float
    accuracy_full: float
    accuracy_difference: Interval  # technique - full; below 0 means worse
    nll: float  # nats per answer token
    nll_full: float
    nll_difference: Interval  # technique - full; above 0 means worse
    kl_to_full: float  # nats, KL(full || technique), mean over answers
    top1_agreement: float  # share of answers where both argmaxes agree


class TextQuality(_Frozen):
    """Streaming loss on held-out text, fed token by token through the evolving cache."""

    items: Items  # one per stream
    kv_bytes_held: int  # of one stream, after its last token
    kv_bytes_held_full: int
    kv_bytes_offloaded: int  # outside the model's device, beside those held
    n_context: int  # prompt tokens before the first scored one
    n_tokens: int  # scored tokens, over all streams
    nll: float  # nats per token; perplexity = exp(nll)
    nll_full: float
    nll_difference: Interval
    kl_to_full: float
    top1_agreement: float


class Quality(_Frozen):
    text_source: str  # of the streams, and of what the needles are hidden in
    text_sha256: str
    tasks: list[TaskQuality]
    text: TextQuality | None


class Serving(_Frozen):
    """What one engine did with the requests of a point, over its trials. Seconds count from the arrival of the first,
    those to a first token from the request's own, so that a request that waits for its turn waits.
    """

    n_requests: int | None = None  # that it served in a trial; None in older records: all of the point
    wall_s: list[float]  # one per trial, until the last token
    ttft_s: list[float]  # one per request and trial
    tpot_s: list[float]  # one per request and trial, between its own tokens; empty where there is only one
    tokens_per_s: float  # new tokens of all that it served over the median trial
    ttft_s_p50: float
    ttft_s_p90: float
    tpot_s_p50: float  # NaN where there is no sample
    tpot_s_p90: float
    start_up_s: float  # before the first request, once
    kv_bytes_allocated: int
    kv_bytes_used: int  # of tokens, at most at once
    n_blocks: int | None = None  # of the pool, where there is one
    block_size: int | None = None  # tokens
    n_blocks_used: int | None = None  # at most at once
    n_preemptions: int = 0  # most of a trial
    n_prefix_tokens: int = 0  # of the prompts that were looked up, one trial
    n_prefix_hits: int = 0  # of those, found
    version: str | None = None  # of an engine that has an environment of its own


class Agreement(_Frozen):
    """What an engine says beside what the model says, as Transformers computes it with plain keys and values."""

    n_steps: int  # tokens that were compared: of each request up to where rounding decides between two words
    tokens_equal: float  # share
    correlation: float | None = None  # of log-probabilities over all words; None where the tokens alone were compared
    kl: float | None = None  # nats, KL(model || engine), mean over steps


class Throughput(_Frozen):
    """One engine beside Transformers one by one and in one batch, interleaved; above 1 is faster than that baseline."""

    n_prompt_tokens: list[int]  # of each request
    n_new_tokens: list[int]
    arrival_s: list[float] = Field(
        default_factory=list
    )  # of each request, after the first; empty in older records: all were there at once
    agreement: Agreement
    engine: Serving | None  # None where what it says is not what the model says
    one_by_one: Serving  # of the first requests alone, where all are equal in lengths
    batch: Serving
    speedup_one_by_one: Interval | None
    speedup_batch: Interval | None
    aa_batch: Interval | None  # trials of the batch over the next one: how far they lie apart; None of a single one


class Record(_Frozen):
    """One cell, measured (`ok`), failed (`error`) or not possible here (`skipped`)."""

    schema_version: Literal[3] = 3
    cell: Cell
    status: Literal["ok", "error", "skipped"]
    reason: str = ""  # why it is not ok
    remedy: str = ""  # what would help
    fingerprint: str
    config: dict[str, Any]
    environment: dict[str, Any]  # hardware identity, versions, threads
    predicted: Predicted | None = None
    cost: Cost | None = None
    quality: Quality | None = None
    throughput: Throughput | None = None
    wall_s: float = Field(ge=0)


def path_of(cell: Cell, results_dir: Path, hardware_id: str) -> Path:
    return results_dir / cell.level / cell.strategy / hardware_id / f"{cell.slug}.json"


def write(record: BaseModel, path: Path) -> None:
    """Write so that the file is either the old one or the whole new one, whatever kills the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        file.write(record.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)  # a temporary file is its owner's alone, a record is everybody's
    os.replace(file.name, path)


def read_as(kind: type[Result], path: Path, remedy: str) -> Result:
    """What `write` wrote. Raises ValueError, one line with the file, its first fault and the remedy, for all else."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"corrupt {path}: {_fault(error)}; {remedy}") from None


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"


class OutdatedRecord(ValueError):
    """A record that an older version wrote."""


def read(path: Path) -> Record:
    """Raises ValueError, naming the file, when it is not a record; OutdatedRecord when it is one of another schema."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("schema_version",):
            raise OutdatedRecord(f"{path}: a record of another version; measure its cell again, or delete it") from None
        raise ValueError(f"corrupt record {path}: {_fault(error)}; delete the file to measure the cell again") from None


def read_all(results_dir: Path) -> list[Record]:
    return [read(path) for path in sorted(results_dir.glob("*/*/*/*.json"))]
