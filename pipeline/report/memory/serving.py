"""Serving from a fixed memory: who is served at once, by how memory is shared out and by what caches keep."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.findings import quantities as q
from pipeline.report.tables import Table
from pipeline.serving.results import Counted, Filled, Load, OfPolicy, OfTechnique, Policy, Served, Serving, Size

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


def sentences(found: Serving) -> list[str]:
    return [
        _said_of_requests(found),
        _said_of_blocks(found),
        _said_of_knowledge(found),
        _said_of_sharing(found),
        _said_of_block_sizes(found.block_sizes),
        *_said_of_techniques(found),
        _said_of_study(found),
        *(f"Not sized: {q.words(_code(of.techniques))}: {q.free_text(of.reason)}." for of in found.unsized),
    ]


def title(policy: Policy) -> str:
    return POLICIES[policy][0]


def baseline(found: Serving) -> OfTechnique:
    return next(of for of in found.techniques if BASELINE in of.techniques)


def shown(of: OfTechnique) -> str:
    """The techniques that are served alike, the baseline before others."""
    return ", ".join(_code(sorted(of.techniques, key=lambda name: (name != BASELINE, name))))


def _policies(found: Serving) -> Table:
    columns = [("Memory", "l"), ("A sequence", "l"), ("Utilisation", "r")]
    columns += [("Tokens", "r"), ("Unfilled", "r"), ("In pieces", "r")]
    columns += [("Sequences, mean", "r"), ("Most", "r"), ("Preempted", "r"), ("Wait, steps", "r"), ("Goodput", "r")]
    return Table(columns, [[*POLICIES[of.policy], *_memory(of.served), *_service(of.served)] for of in found.policies])


def _memory(served: Served) -> list[str]:
    return [q.share(share) for share in (served.utilisation, served.held, served.unfilled, served.unusable)]


def _service(served: Served) -> list[str]:
    counts = (served.concurrent_peak, served.n_preemptions, served.waiting_steps)
    return [q.decimal(served.concurrent_mean, 1), *map(q.count, counts), q.decimal(_goodput(served), 1)]


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
    reference = _goodput(baseline(found).served)
    ranked = sorted(found.techniques, key=lambda of: -_goodput(of.served))
    return Table(columns, [[shown(of), *_kept(of.size), *_gained(of.served, reference)] for of in ranked])


def _kept(size: Size) -> list[str]:
    besides = q.plural(size.fixed, "token") if size.fixed else q.DASH
    return [q.data(size.slot_bytes), q.share(size.keeps), besides, "all" if size.grows else "in place of others"]


def _gained(served: Served, reference: float) -> list[str]:
    counts = (served.n_slots, served.concurrent_mean, served.concurrent_peak, served.n_preemptions)
    return [*map(q.count, counts), q.decimal(_goodput(served), 1), _over(_goodput(served), reference)]


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


def _said_of_requests(found: Serving) -> str:
    plan, load = found.plan, found.load
    return (
        f"{_model(found)} in {plan.dtype} on {plan.gpu_gb:g}{q.GLUE}GB: the weights leave "
        f"{q.data(found.room_bytes)}, room for {q.count(_of(found, 'contiguous_longest').n_slots)} tokens of the full "
        f"cache. {_of_load(load)} arrive over {q.count(plan.n_steps)} steps (seed {plan.seed}); "
        f"{q.count(load.n_sharing)} begin with one of {plan.trace.system_prompts.n} common prompts of "
        f"{q.count(plan.trace.system_prompts.n_tokens)} tokens. For techniques, {_of_load(found.techniques_load)} "
        f"arrive in as many steps."
    )


def _of_load(load: Load) -> str:
    return (
        f"{q.plural(load.n_requests, 'request')} of {q.count(load.prompt_mean)} + {q.count(load.output_mean)} tokens "
        f"(means of prompt and output, {q.count(load.longest)} at most)"
    )


def _said_of_blocks(found: Serving) -> str:
    before, after = _of(found, "contiguous_longest"), _of(found, "paged")
    return (
        f"Where each sequence reserves {q.count(found.plan.max_len)} tokens, {q.share(before.utilisation)} of what is "
        f"reserved holds any; in blocks of {found.plan.block_size}, {q.share(after.utilisation)}. So "
        f"{q.decimal(after.concurrent_mean, 1)} sequences run at once instead of "
        f"{q.decimal(before.concurrent_mean, 1)}, {_over(after.concurrent_mean, before.concurrent_mean)}, and goodput "
        f"is {_over(_goodput(after), _goodput(before))}."
    )


def _said_of_knowledge(found: Serving) -> str:
    """What contiguous memory reaches that knows lengths beforehand, beside blocks that know nothing."""
    paged = _of(found, "paged")
    said = [
        f"one that {POLICIES[policy][1]}, fills {q.share(served.utilisation)} of that, {q.share(served.unusable)} of "
        "memory lies free in pieces that are too small, and goodput is "
        f"{_over(_goodput(served), _goodput(paged))} that of blocks"
        for policy in ("contiguous_power_of_two", "contiguous_exact")
        for served in [_of(found, policy)]
    ]
    return f"Contiguous sequences whose length is known better: {'; '.join(said)}."


def _said_of_sharing(found: Serving) -> str:
    alone, shared, swapped = (_of(found, policy) for policy in ("paged", "paged_sharing", "paged_swapping"))
    return (
        f"Common prompts that are held once: {q.decimal(shared.concurrent_mean, 1)} sequences instead of "
        f"{q.decimal(alone.concurrent_mean, 1)}, {_over(_goodput(shared), _goodput(alone))} the goodput. The pool ran "
        f"out {q.count(alone.n_preemptions)} times without sharing, so that {q.count(alone.n_recomputed)} tokens were "
        f"fed again; swapping instead, {q.count(swapped.n_preemptions)} times, at "
        f"{_over(_goodput(swapped), _goodput(alone))} the goodput, what is moved not counted."
    )


def _said_of_block_sizes(found: Sequence[OfPolicy]) -> str:
    small, large = (min(found, key=_block), max(found, key=_block))
    best = max(_goodput(of.served) for of in found)
    near = [str(of.block_size) for of in found if _goodput(of.served) >= 0.99 * best]
    return (
        f"From blocks of {small.block_size} to blocks of {large.block_size}, utilisation goes from "
        f"{q.share(small.served.utilisation)} to {q.share(large.served.utilisation)} and goodput from "
        f"{q.decimal(_goodput(small.served), 1)} to {q.decimal(_goodput(large.served), 1)} tokens a step; within 1"
        f"{q.GLUE}% of the best: blocks of {q.words(near)}."
    )


def _said_of_techniques(found: Serving) -> list[str]:
    reference = _goodput(baseline(found).served)
    ranked = sorted(found.techniques, key=lambda of: -_goodput(of.served))
    groups = [
        ("that keep every token", [of for of in ranked if of.size.keeps == 1 and BASELINE not in of.techniques]),
        ("that evict once, after the prompt", [of for of in ranked if of.size.keeps < 1 and of.size.grows]),
        ("that evict in every step", [of for of in ranked if of.size.keeps < 1 and not of.size.grows]),
    ]
    said = [
        f"of those {which}, {_first(members[0])} serves most, {_over(_goodput(members[0].served), reference)}, and "
        f"{_first(members[-1])} least, {_over(_goodput(members[-1].served), reference)}"
        if len(members) > 1
        else f"of those {which}, {_first(members[0])} serves {_over(_goodput(members[0].served), reference)}"
        for which, members in groups
        if members
    ]
    return [
        f"Goodput over that of the full cache, {q.decimal(reference, 1)} tokens a step: {'; '.join(said)}.",
        *_said_of_limits(found, reference),
    ]


def _said_of_limits(found: Serving, reference: float) -> list[str]:
    """Who serves less than the full cache, whom arrivals limit rather than memory, and what a step reads."""
    worse = [_first(of) for of in found.techniques if _goodput(of.served) < reference]
    idle = [_first(of) for of in found.techniques if not of.served.n_waiting]
    least, most = (pick(of.served.held for of in found.techniques) * found.room_bytes for pick in (min, max))
    return [
        *([f"Below the full cache: {q.words(worse)}."] if worse else []),
        *([f"Nobody waits at the end with {q.words(idle)}: arrivals limit them, not memory."] if idle else []),
        f"A step has {q.data(least)} to {q.data(most)} of keys and values to read, mean over steps, by technique: each "
        "fills the same memory, so a step counts the same for all. Unpacking codes, choosing tokens and what a prompt "
        "takes before any of it is evicted are not counted, nor is quality.",
    ]


def _said_of_study(found: Serving) -> str:
    study = found.cases.study
    asked = study.asked
    agrees = "as it said" if study.n_paged == asked.n_said else f"not {q.count(asked.n_said)}"
    before, after = _of(found, "contiguous_longest"), _of(found, "paged")
    return (
        f"An earlier study set {q.count(asked.n_contiguous)} contiguous sequences against {q.count(asked.n_said)} in "
        f"blocks. {q.count(asked.n_contiguous)} that reserve {q.count(asked.max_len)} tokens each take "
        f"{q.count(study.n_slots)} slots, and the allocator finds room there for {q.count(study.n_paged)} sequences of "
        f"{q.count(asked.mean_len)} tokens, {agrees}; {q.count(asked.n_said)} would have "
        f"{q.count(study.n_slots / asked.n_said)} tokens each. With the lengths of the trace above, which differ and "
        f"grow, it is {q.decimal(before.concurrent_mean, 1)} against {q.decimal(after.concurrent_mean, 1)}."
    )


def _of(found: Serving, policy: Policy) -> Served:
    return next(of.served for of in found.policies if of.policy == policy)


def _goodput(served: Served) -> float:
    return served.finished_tokens_per_step


def _over(value: float, reference: float) -> str:
    return q.ratio(value / reference) if reference else q.DASH


def _block(of: OfPolicy) -> int:
    return of.block_size or 0


def _first(of: OfTechnique) -> str:
    """One name for those that are served alike."""
    name, *others = shown(of).split(", ")
    return f"{name} and {q.plural(len(others), 'other')} like it" if others else name


def _code(names: Sequence[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(q.count, numbers))


def _model(found: Serving) -> str:
    return found.plan.model.title.removesuffix(", published shape")


def _place(found: Serving) -> str:
    return f"{_model(found)}, {q.data(found.room_bytes)} beside the weights"
