"""Records made up by rule, so that a test can say what a report must say about them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from pipeline import record
from pipeline.record import Arm, Cell, Cost, Interval, Items, Predicted, Quality, Record, TaskQuality, TextQuality

MACHINE = "xeon-2c-24g-025cfa"
KV_BYTES_PER_TOKEN = 49_152
WEIGHT_BYTES = 160_000_000
N_NEW_TOKENS = 33
TASKS = ("single_needle", "multi_key_8", "multi_key_32", "multi_query", "variable_tracking", "most_frequent")


def interval(estimate: float, half_width: float, n: int = 8) -> Interval:
    return Interval(estimate=estimate, low=estimate - half_width, high=estimate + half_width, n=n)


def cell(strategy: str, seq_len: int = 512, **changes: Any) -> Cell:
    values: dict[str, Any] = {
        "level": "token",
        "model": "bench",
        "strategy": strategy,
        "weights": "none",
        "engine": "ours",
        "workload": "cost",
        "seq_len": seq_len,
        "batch": 1,
        "n_new_tokens": N_NEW_TOKENS,
        "kv_budget": None if strategy in {"full", "no_cache"} else seq_len // 4,
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
    }
    return Cell(**values | changes)


def config(of: Cell, max_seq_len: int | None = None) -> dict[str, Any]:
    keeps_all = of.kv_budget is None
    return {
        "strategy": {
            "name": of.strategy,
            "title": of.strategy.partition("+")[0].replace("_", " ").capitalize(),
            "paper": "arXiv:2309.17453" if of.strategy == "attention_sink" else None,
            "summary": f"What {of.strategy} is, in one line.",
            "keep_ratio": None if keeps_all else 0.25,
            "kv_budget": None,
            "scorer": {"_target_": "strategies.token.sinks.SinkScorer", "n_sinks": 4},
            "allocation": {"_target_": "strategies.token.uniform.UniformAllocation"},
        },
        "model": {"name": of.model, "source": "checkpoint" if max_seq_len else "random", "max_seq_len": max_seq_len},
    }


def arm(of: Cell, tpot_s: float, kv_bytes: int, noise: random.Random) -> Arm:
    steps = [tpot_s * noise.uniform(0.97, 1.06) for _ in range(of.n_new_tokens - 1)]
    memory = [WEIGHT_BYTES + 2 * kv_bytes + 10_000 * of.seq_len, *(WEIGHT_BYTES + kv_bytes + (1 << 20) for _ in steps)]
    return Arm(
        ttft_s=[40 * tpot_s] * 3,
        tpot_s=[tpot_s] * 8,
        step_s=steps,
        kv_bytes_held=[kv_bytes] * of.n_new_tokens,
        kv_bytes_logical=kv_bytes,
        kv_bytes_offloaded=0,
        peak_memory_bytes=max(memory),
        step_peak_memory_bytes=memory,
        ttft_s_p50=40 * tpot_s,
        ttft_s_p90=44 * tpot_s,
        tpot_s_p50=tpot_s,
        tpot_s_p90=1.1 * tpot_s,
        decode_tokens_per_s=of.batch / tpot_s,
    )


def held(of: Cell) -> int:
    """Bytes that the technique holds at the last step; a full cache holds the prompt and all new tokens."""
    n_seen = of.seq_len + of.n_new_tokens
    kept = 0 if of.strategy == "no_cache" else min(n_seen, of.kv_budget or n_seen)
    return of.batch * kept * KV_BYTES_PER_TOKEN


def cost(of: Cell, ratio: float, half_width: float = 0.02) -> Cost:
    noise = random.Random(of.slug + of.strategy)
    full_s = 0.02 + 5e-6 * of.seq_len * of.batch
    full_bytes = of.batch * (of.seq_len + of.n_new_tokens) * KV_BYTES_PER_TOKEN
    return Cost(
        technique=arm(of, ratio * full_s, held(of), noise),
        full=arm(of, full_s, full_bytes, noise),
        full_again=arm(of, full_s, full_bytes, noise),
        ttft_ratio=interval(1.01, 0.03),
        tpot_ratio=interval(ratio, half_width * ratio),
        aa_ttft_ratio=interval(1.0, 0.02),
        aa_tpot_ratio=interval(1.0, 0.02),
        copy_bandwidth_bytes_per_s=2e10,
        matmul_flop_per_s=1.2e11,
        decode_bandwidth_share=0.7,
        prefill_flop_share=0.5,
    )


N_ITEMS = 100
ITEM_TOKENS = 200  # of one item, with the full cache
ITEM_BYTES = ITEM_TOKENS * KV_BYTES_PER_TOKEN


def items(n: int, correct: float, nll: float, nll_full: float) -> Items:
    """`n` items of which a share `correct` was answered; with the full cache they all were."""
    hits = [1.0] * round(n * correct) + [0.0] * (n - round(n * correct))
    depth = [i / n for i in range(n)]
    return Items(depth=depth, correct=hits, correct_full=[1.0] * n, nll=[nll] * n, nll_full=[nll_full] * n)


def task_quality(
    task: str,
    protocol: Literal["query_aware", "query_agnostic"],
    loss: float,
    half_width: float = 0.05,
    share: float = 1.0,
) -> TaskQuality:
    return TaskQuality(
        task=task,
        protocol=protocol,
        n_items=N_ITEMS,
        items=items(N_ITEMS, 1 - loss, 0.1 + 3 * loss, 0.1),
        kv_bytes_held=round(share * ITEM_BYTES),
        kv_bytes_held_full=ITEM_BYTES,
        kv_bytes_offloaded=0,
        accuracy=0.97 - loss,
        accuracy_full=0.97,
        accuracy_difference=interval(-loss, half_width if loss else 0.0, N_ITEMS),
        nll=0.1 + 3 * loss,
        nll_full=0.1,
        nll_difference=interval(3 * loss, half_width if loss else 0.0, N_ITEMS),
        kl_to_full=2 * loss,
        top1_agreement=1 - loss,
    )


def quality(loss: float, share: float = 1.0) -> Quality:
    """`loss` is the accuracy lost after eviction; half of it is lost where the question was known."""
    tasks = [task_quality(task, "query_aware", loss / 2, share=share) for task in TASKS]
    tasks += [task_quality(task, "query_agnostic", loss, share=share) for task in TASKS]
    text = TextQuality(
        items=items(8, 1.0, 4.5 + loss / 5, 4.5),
        kv_bytes_held=round(share * ITEM_BYTES),
        kv_bytes_held_full=ITEM_BYTES,
        kv_bytes_offloaded=0,
        n_context=256,
        n_tokens=512,
        nll=4.5 + loss / 5,
        nll_full=4.5,
        nll_difference=interval(loss / 5, 0.01 if loss else 0.0, 8),
        kl_to_full=loss / 4,
        top1_agreement=1 - loss / 3,
    )
    return Quality(text_source="a text", text_sha256="0" * 64, tasks=tasks, text=text)


def predicted(of: Cell) -> Predicted:
    read = 140_000_000 + held(of)
    return Predicted(
        weight_bytes=WEIGHT_BYTES,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        kv_bytes_held=held(of),
        decode_bytes_per_step=read,
        decode_floor_s=read / 2e10,
        prefill_flop=1e11,
        prefill_floor_s=1.0,
    )


def make(of: Cell, max_seq_len: int | None = None, **parts: Any) -> Record:
    """A record of this cell; pass cost, quality, status, reason, remedy."""
    environment = {
        "hardware_id": MACHINE,
        "hardware": {"cpu": "Intel(R) Xeon(R) Processor", "n_cores": 2, "memory_gib": 24, "gpus": []},
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.19.0"},
        "n_threads": 2,
    }
    values: dict[str, Any] = {"status": "ok", "predicted": predicted(of)} | parts
    return Record(
        cell=of, fingerprint="f" * 64, config=config(of, max_seq_len), environment=environment, wall_s=1.0, **values
    )


def timed(strategy: str, seq_len: int = 512, ratio: float = 0.5, half_width: float = 0.02, **changes: Any) -> Record:
    of = cell(strategy, seq_len, **changes)
    return make(of, cost=cost(of, ratio, half_width))


def benchmarked(strategy: str, seq_len: int = 4096, ratio: float = 0.5, **changes: Any) -> Record:
    """Against DynamicCache, at the point of the bars."""
    made = timed(strategy, seq_len, ratio, **{"level": "benchmark", "workload": "against_dynamic_cache"} | changes)
    config = made.config | {"baseline": {"name": "hf_dynamic"}}
    config["model"] = config["model"] | {"config": {"head_dim": 64}}
    return made.model_copy(update={"config": config})


def launched(made: Record, technique_s: float, full_s: float) -> Record:
    """The record, had its steps been CUDA graphs, and taken so long where Python launches them."""
    assert made.cost is not None
    times = {"technique": technique_s, "full": full_s}
    arms = {name: getattr(made.cost, name).model_copy(update={"launched_step_s_p50": s}) for name, s in times.items()}
    return made.model_copy(update={"cost": made.cost.model_copy(update=arms)})


def offloaded(made: Record, n_bytes: int, link: float | None) -> Record:
    """The record, had its technique left so much on the host, behind a link of so many bytes per second."""
    assert made.cost is not None
    arm = made.cost.technique.model_copy(update={"kv_bytes_offloaded": n_bytes})
    cost = made.cost.model_copy(update={"technique": arm, "link_bandwidth_bytes_per_s": link})
    return made.model_copy(update={"cost": cost})


def judged(strategy: str, seq_len: int = 512, loss: float = 0.0, **changes: Any) -> Record:
    of = cell(strategy, seq_len, model="tiny", workload="quality", **changes)
    share = {"full": 1.0, "no_cache": 0.0}.get(strategy, 0.25)
    return make(of, max_seq_len=1024, quality=quality(loss, share))


def store(records: list[Record], results_dir: Path, machine: str = MACHINE) -> Path:
    for item in records:
        placed = item.model_copy(update={"environment": item.environment | {"hardware_id": machine}})
        record.write(placed, record.path_of(item.cell, results_dir, machine))
    return results_dir


def realistic() -> list[Record]:
    """Five techniques, five lengths, two batches, three lengths of quality; one cell failed, one skipped.
    A technique that the command line changed, and a benchmark of three."""
    lengths = (512, 1024, 2048, 4096, 8192)
    speed = {
        "full": (1.0, 1.0, 1.0, 1.0, 1.0),
        "sliding_window": (0.98, 0.9, 0.74, 0.58, 0.41),
        "attention_sink": (0.99, 0.92, 0.76, 0.6, 0.43),
        "random_eviction": (1.02, 0.95, 0.8, 0.66, 0.5),
        "no_cache": (9.0, 17.0, 34.0, 70.0),
    }
    losses = {"full": 0.0, "no_cache": 0.0, "sliding_window": 0.71, "attention_sink": 0.68, "random_eviction": 0.8}
    records = [timed(name, n, r) for name, ratios in speed.items() for n, r in zip(lengths, ratios, strict=False)]
    records += [timed(name, 4096, ratios[3] ** 1.1, workload="batched", batch=4) for name, ratios in speed.items()]
    records += [judged(n, s, loss * (0.8 + s / 5120)) for n, loss in losses.items() for s in (256, 512, 1024)]
    records += [timed("attention_sink+scorer.n_sinks=8", n, r) for n, r in zip(lengths, speed["full"], strict=True)]
    records += [benchmarked(n, ratio=r) for n, r in (("full", 0.59), ("sliding_window", 0.37), ("tova", 0.38))]
    failed = cell("random_eviction", 16384)
    skipped = cell("no_cache", 8192)
    records.append(make(failed, status="error", reason="MemoryError: 12 GiB | not free", remedy="a smaller batch"))
    records.append(make(skipped, status="skipped", reason="needs at least 900 s", remedy="a higher profile.max_cell_s"))
    return records
