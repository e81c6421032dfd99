"""Serving from a fixed memory: who is served at once, by how memory is shared out and by what caches keep."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.findings import quantities as q
from pipeline.report.tables import Table
from pipeline.serving.results import Counted, Filled, OfPolicy, OfTechnique, Policy, Served, Serving, Size

BASELINE = "full"
POLICIES: dict[Policy, tuple[str, str]] = {  # title, what it does
    "contiguous_longest": ("Contiguous, longest", "reserves as much as any request may have"),
    "contiguous_power_of_two": ("Contiguous, power of two", "reserves the output's next power of two, known before"),
    "contiguous_exact": ("Contiguous, exact", "reserves what will be needed, known before"),
    "paged": ("Paged", "takes blocks as it grows; what is preempted is computed again"),
    "paged_swapping": ("Paged, swapped", "takes blocks as it grows; what is preempted goes to the host and comes back"),
    "paged_sharing": ("Paged, shared", "holds the full blocks of a common prompt once"),
}


def tables(found: Serving) -> list[tuple[str, Table]]:
    """Policies, block sizes, techniques, and the cases that can be counted on paper."""
    return [
        (f"How memory is shared out, {_place(found)}", _policies(found)),
        ("Block sizes, paged", _block_sizes(found.block_sizes)),
        (f"Techniques, blocks of {found.plan.block_size}", _techniques(found)),
        ("Cases that can be counted on paper, counted by the allocators", _cases(found.cases)),
    ]


def title(policy: Policy) -> str:
    return POLICIES[policy][0]


def baseline(found: Serving) -> OfTechnique:
    return next(of for of in found.techniques if BASELINE in of.techniques)


def shown(of: OfTechnique) -> str:
    """The techniques that are served alike, the baseline before others."""
    return ", ".join(code(sorted(of.techniques, key=lambda name: (name != BASELINE, name))))


def _policies(found: Serving) -> Table:
    columns = [("Memory", "l"), ("A sequence", "l"), ("Utilisation", "r")]
    columns += [("Tokens", "r"), ("Unfilled", "r"), ("In pieces", "r")]
    columns += [("Sequences, mean", "r"), ("Most", "r"), ("Preempted", "r"), ("Wait, steps", "r"), ("Goodput", "r")]
    return Table(columns, [[*POLICIES[of.policy], *_memory(of.served), *_service(of.served)] for of in found.policies])


def _memory(served: Served) -> list[str]:
    return [q.share(share) for share in (served.utilisation, served.held, served.unfilled, served.unusable)]


def _service(served: Served) -> list[str]:
    counts = (served.concurrent_peak, served.n_preemptions, served.waiting_steps)
    return [q.decimal(served.concurrent_mean, 1), *map(q.count, counts), q.decimal(goodput(served), 1)]


def _block_sizes(found: Sequence[OfPolicy]) -> Table:
    columns = [("Block, tokens", "r"), ("Utilisation", "r"), ("Tokens", "r"), ("Unfilled", "r"), ("In pieces", "r")]
    columns += [("Sequences, mean", "r"), ("Most", "r"), ("Preempted", "r"), ("Wait, steps", "r"), ("Goodput", "r")]
    return Table(columns, [[str(of.block_size), *_memory(of.served), *_service(of.served)] for of in found])


def _techniques(found: Serving) -> Table:
    columns = [
        ("Technique", "l"),
        ("A kept token", "r"),
        ("Of a prompt", "r"),
        ("Besides", "r"),
        ("Of the output", "r"),
    ]
    columns += [("Room, tokens", "r"), ("Sequences, mean", "r"), ("Most", "r"), ("Preempted", "r")]
    columns += [("Goodput", "r"), (f"Over `{BASELINE}`", "r")]
    reference = goodput(baseline(found).served)
    return Table(columns, [[shown(of), *_kept(of.size), *_gained(of.served, reference)] for of in ranked(found)])


def _kept(size: Size) -> list[str]:
    besides = q.plural(size.fixed, "token") if size.fixed else q.DASH
    return [q.data(size.slot_bytes), q.share(size.keeps), besides, "all" if size.grows else "in place of others"]


def _gained(served: Served, reference: float) -> list[str]:
    counts = (served.n_slots, served.concurrent_mean, served.concurrent_peak, served.n_preemptions)
    return [*map(q.count, counts), q.decimal(goodput(served), 1), over(goodput(served), reference)]


def _cases(found: Counted) -> Table:
    columns = [("Case", "l"), ("Contiguous, or not shared", "r"), ("In blocks", "r")]
    growth, beams, study = found.growth, found.beams, found.study
    return Table(
        columns,
        [
            *([f"Lengths {_listed(of.asked.lengths)}", _reserved(of), _in_blocks(of)] for of in found.fills),
            [
                f"A sequence that grows to {_listed(growth.asked.lengths)} tokens",
                q.DASH,
                f"{_listed(growth.n_blocks)} blocks of {growth.asked.block_size}",
            ],
            [
                f"{beams.asked.n} beams on a prefix of {q.plural(beams.asked.n_prefix_blocks, 'block')}, each with "
                f"{q.plural(beams.asked.n_own_blocks, 'block')} of its own",
                q.plural(beams.n_blocks_unshared, "block"),
                q.plural(beams.n_blocks, "block"),
            ],
            [
                f"{q.count(study.n_slots)} slots, {q.count(study.asked.max_len)} reserved for each sequence, or blocks "
                f"of {study.asked.block_size} for {q.count(study.asked.mean_len)} tokens each",
                q.plural(study.asked.n_contiguous, "sequence"),
                q.plural(study.n_paged, "sequence"),
            ],
        ],
    )


def _reserved(of: Filled) -> str:
    return f"{of.asked.max_len} each: {_used(of.n_tokens, of.n_contiguous)}"


def _in_blocks(of: Filled) -> str:
    n_slots = of.n_blocks * of.asked.block_size
    return f"{q.plural(of.n_blocks, 'block')} of {of.asked.block_size}: {_used(of.n_tokens, n_slots)}"


def _used(n_tokens: int, n_slots: int) -> str:
    return f"{n_tokens}/{n_slots}, {q.share(n_tokens / n_slots)}"


def ranked(found: Serving) -> list[OfTechnique]:
    """The one that serves most first."""
    return sorted(found.techniques, key=lambda of: -goodput(of.served))


def goodput(served: Served) -> float:
    return served.finished_tokens_per_step


def over(value: float, reference: float) -> str:
    return q.ratio(value / reference) if reference else q.DASH


def code(names: Sequence[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(q.count, numbers))


def model(found: Serving) -> str:
    return found.plan.model.title.removesuffix(", published shape")


def _place(found: Serving) -> str:
    return f"{model(found)}, {q.data(found.room_bytes)} beside the weights"
