"""How many bytes a cache takes, and the largest batch that fits beside the weights: from shapes alone, in seconds.

    python -m pipeline.memory model=llama_3_1_8b seq_len=[4096,131072] batch=8 dtype=bf16 strategy=kv_int4 gpu_gb=80
    python -m pipeline.memory model=hub model.path=ID_OR_FOLDER     only config.json is read
    python -m pipeline.memory strategy=snapkv strategy/encoding=int4 strategy.keep_ratio=0.1

Models and techniques: python -m pipeline.list. All options and what they mean: conf/memory.yaml. Weights and caches are
counted, activations and what libraries take for themselves are not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.memory.question import asked
from pipeline.refusals import COMPOSING, refusals

if TYPE_CHECKING:
    from pipeline.memory.calculator import Calculated
    from pipeline.memory.question import Question


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    with refusals((*COMPOSING, ValueError), "memory"):
        question = asked(arguments)
        found = _calculated(question)
    _show(question, found)
    return 0


def _calculated(question: Question) -> Calculated:
    """Raises ValueError, one line, also for what a technique says in other ways about a model that it cannot hold."""
    from pipeline.memory.calculator import calculate

    try:
        return calculate(question)
    except (ImportError, NotImplementedError, RuntimeError, TypeError, AttributeError, LookupError) as error:
        why = " ".join(str(error).split())
        if re.match(r"[\w.]+=", why):
            raise ValueError(why) from None
        raise ValueError(f"strategy={question.strategy.name}: cannot be counted for model={question.model.label} "
                         f"({why}); valid: another strategy, such as native") from None  # fmt: skip


def _show(question: Question, found: Calculated) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.findings import quantities as q

    total = q.data(question.gpu_bytes)
    cards = f"{question.n_gpus} × {question.gpu_gb:g} GB" if question.n_gpus > 1 else f"{question.gpu_gb:g} GB"
    console = Console(highlight=False)
    if not console.is_terminal:  # a line that is folded at 80 columns cannot be searched
        console = Console(highlight=False, width=1000)
    console.print(
        f"{question.model.label}, {question.strategy.variant}, {question.dtype}, batch {question.batch}\n"
        f"weights {q.data(found.weight_bytes)} of {total} ({cards}); "
        f"a token more adds {q.data(found.kv_bytes_per_token)} where nothing is compressed"
    )
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("tokens", "kept", "per token", "KV kept", "KV held", "bytes held", "largest batch"):
        table.add_column(heading, justify="right")
    for answer in found.answers:
        taken, most = answer.of_batch(question.batch), answer.largest_batch(question.gpu_bytes - found.weight_bytes)
        table.add_row(
            q.count(answer.seq_len),
            "all" if answer.kv_budget is None else q.count(answer.kv_budget),
            q.data(taken.kept / (question.batch * answer.seq_len)),
            q.data(taken.kept),
            q.data(taken.held),
            q.count(taken.held),
            q.DASH if question.offloads else "any" if most is None else q.count(most),
        )
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
