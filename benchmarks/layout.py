"""Memory layouts of a cache against each other: what appending a token costs, and what attending to all of them does.

    python -m benchmarks.layout

Heads first, tokens first and pages, in one process, in turns in random order. On the processor, where a step goes
through all layers, so that long caches come from memory and not from the processor's own cache. Takes about a minute;
a file of this machine that still holds is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from benchmarks.kv_layouts import Contiguous, Paged, Shape, Tokens, fused, products, random_tokens
from pipeline import ROOT, hardware, intervals, layout, record, timing
from pipeline.fingerprint import BY_VALUE, code_hashes, digest
from pipeline.layout import AGAIN, REFERENCE, Layouts, Plan, Point, Timed
from pipeline.refusals import refusals

NO_PART = (*BY_VALUE, "pipeline.fingerprint", "pipeline.refusals")  # in the numbers
DEFAULT = Plan()
WARM_UP_TRIALS = 1
Arms = dict[str, dict[str, Callable[[], object]]]  # job -> layout -> all that one trial times


def run(results_dir: Path, plan: Plan = DEFAULT) -> Path:
    """The file of this machine, measured where there is none that still holds. Raises ValueError for a corrupt one."""
    path, asked = layout.path_of(results_dir, hardware.hardware_id()), fingerprint(plan)
    locks = results_dir / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{layout.FOLDER}.lock"):
        if not path.exists() or layout.read(path).fingerprint != asked:
            environment = {
                "hardware_id": hardware.hardware_id(),
                "hardware": hardware.identity(),
                "versions": hardware.versions(),
                "n_threads": hardware.n_usable_cores(),
            }
            points = list(measured(plan))
            record.write(Layouts(fingerprint=asked, environment=environment, plan=plan, points=points), path)
    return path


def fingerprint(plan: Plan) -> str:
    """sha256 over what is asked, code, versions and hardware."""
    return digest(
        {
            "plan": plan.model_dump(),
            "n_threads": hardware.n_usable_cores(),
            "code": code_hashes(["benchmarks.layout"], leave_out=NO_PART),
            "versions": hardware.versions(),
            "hardware": hardware.identity(),
        }
    )


def measured(plan: Plan) -> Sequence[Point]:
    points = []
    with timing.pinned_threads(hardware.n_usable_cores()), timing.no_garbage_collection(), torch.inference_mode():
        for n_kv_heads in plan.n_kv_heads:
            for seq_len in plan.seq_len:
                print(f"{n_kv_heads} KV heads, {seq_len:,} tokens", file=sys.stderr, flush=True)
                points.append(_point(plan, n_kv_heads, seq_len))
    return points


def _point(plan: Plan, n_kv_heads: int, seq_len: int) -> Point:
    arms = _arms(plan, n_kv_heads, seq_len)
    names = [f"{job} {name}" for job, members in arms.items() for name in members]
    n_times = {"append": plan.n_appends, "attend": plan.n_steps}
    seconds: dict[str, dict[str, list[float]]] = {job: {name: [] for name in members} for job, members in arms.items()}
    rng = np.random.default_rng(plan.seed)
    for order in timing.trial_orders(names, WARM_UP_TRIALS + plan.n_trials, rng, plan.max_s, at_least=3):
        for job, name in (arm.split() for arm in order):
            started = time.perf_counter()
            arms[job][name]()
            seconds[job][name].append((time.perf_counter() - started) / n_times[job])
    timed = {job: _compared(samples, plan) for job, samples in seconds.items()}
    return Point(n_kv_heads=n_kv_heads, seq_len=seq_len, append=timed["append"], attend=timed["attend"])


def _arms(plan: Plan, n_kv_heads: int, seq_len: int) -> Arms:
    """Every layout holds the same tokens; the reference is there twice."""
    shape = Shape(plan.n_layers, 1, n_kv_heads, plan.head_dim, seq_len + plan.n_appends)
    generator = torch.Generator().manual_seed(plan.seed)
    tokens, token = (random_tokens(shape, n, generator) for n in (seq_len, 1))
    rows = plan.n_heads // n_kv_heads
    query_LBHRD = torch.randn(plan.n_layers, 1, n_kv_heads, rows, plan.head_dim, generator=generator)
    heads_first, tokens_first = (Contiguous(shape, tokens_first=order) for order in (False, True))
    paged = Paged(shape, plan.page_size, plan.seed)
    caches: dict[str, Contiguous | Paged] = {
        REFERENCE: heads_first,
        AGAIN: heads_first,
        "tokens_first": tokens_first,
        "paged": paged,
    }
    for cache in (heads_first, tokens_first, paged):
        cache.append(tokens)
    steps = {
        REFERENCE: partial(heads_first.attend, query_LBHRD, fused),
        AGAIN: partial(heads_first.attend, query_LBHRD, fused),
        "heads_first_products": partial(heads_first.attend, query_LBHRD, products),
        "tokens_first": partial(tokens_first.attend, query_LBHRD, fused),
        "tokens_first_products": partial(tokens_first.attend, query_LBHRD, products),
        "paged": partial(paged.attend, query_LBHRD),
    }
    return {
        "append": {name: partial(_append, cache, token, seq_len, plan.n_appends) for name, cache in caches.items()},
        "attend": {name: partial(_repeat, step, plan.n_steps) for name, step in steps.items()},
    }


def _append(cache: Contiguous | Paged, token: Tokens, n_before: int, n_times: int) -> None:
    """The same tokens of the cache are written in every trial, and forgotten again."""
    for _ in range(n_times):
        cache.append(token)
    cache.n_tokens = n_before


def _repeat(step: Callable[[], object], n_times: int) -> None:
    for _ in range(n_times):
        step()


def _compared(seconds: dict[str, list[float]], plan: Plan) -> dict[str, Timed]:
    kept = {name: samples[WARM_UP_TRIALS:] for name, samples in seconds.items()}
    return {
        name: Timed(seconds=samples, ratio=intervals.ratio(samples, kept[REFERENCE], plan.n_bootstrap, plan.seed))
        for name, samples in kept.items()
    }


def main(arguments: Sequence[str]) -> None:
    assert __doc__
    parser = argparse.ArgumentParser("benchmarks.layout", description=__doc__.partition("\n")[0])
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results")
    with refusals():
        print(run(parser.parse_args(arguments).results_dir))


if __name__ == "__main__":
    main(sys.argv[1:])
