"""How many sequences a fixed memory serves: contiguous, in blocks, with shared prefixes, and with compressed caches.

    python -m pipeline.serving
    python -m pipeline.serving gpu_gb=40 block_size=32 trace.arrivals_per_step=2
    python -m pipeline.serving model=qwen3_8b max_len=4096 seed=1

Simulated in discrete steps with the block allocator of the paged cache; shapes and a seed decide everything, nothing is
timed. Writes serving.json below results_dir. All options and what they mean: conf/serving.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import record
from pipeline.refusals import COMPOSING, refusals
from pipeline.serving import plan, results

if TYPE_CHECKING:
    from pipeline.serving.results import Served, Serving


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    with refusals((*COMPOSING, ValueError), "serving"):
        asked, results_dir = plan.asked(arguments)
        found = _computed(asked)
    record.write(found, results_dir / results.FILE)
    _show(found)
    print(results_dir / results.FILE)
    return 0


def _computed(asked: plan.Plan) -> Serving:
    from rich.console import Console

    from pipeline.serving.computed import computed

    with Console(stderr=True).status("") as status:
        return computed(asked, status.update)


def _show(found: Serving) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.findings import quantities as q

    console = Console(highlight=False)
    if not console.is_terminal:  # a line that is folded at 80 columns cannot be searched
        console = Console(highlight=False, width=1000)
    console.print(f"{found.plan.model.label}, {q.data(found.room_bytes)} beside the weights")
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("served from")
    for heading in ("tokens", "utilisation", "sequences", "at most", "preempted", "finished a step"):
        table.add_column(heading, justify="right")
    for name, served in _lines(found):
        table.add_row(name, *_cells(served))
    console.print(table)


def _lines(found: Serving) -> list[tuple[str, Served]]:
    policies = [(of.policy.replace("_", " "), of.served) for of in found.policies]
    blocks = [(f"blocks of {of.block_size}", of.served) for of in found.block_sizes]
    return [*policies, *blocks, *((", ".join(of.techniques), of.served) for of in found.techniques)]


def _cells(served: Served) -> list[str]:
    from pipeline.findings import quantities as q

    counts = (served.n_slots, served.concurrent_peak, served.n_preemptions, served.finished_tokens_per_step)
    slots, peak, preempted, goodput = map(q.count, counts)
    return [slots, q.share(served.utilisation), q.count(served.concurrent_mean), peak, preempted, goodput]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
