"""Sentences about serving from a fixed memory."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.findings import quantities as q
from pipeline.report.memory.serving import BASELINE, POLICIES, baseline, code, goodput, model, over, ranked, shown
from pipeline.serving.results import Load, OfPolicy, OfTechnique, Policy, Served, Serving


def sentences(found: Serving) -> list[str]:
    return [
        _said_of_requests(found),
        _said_of_blocks(found),
        _said_of_knowledge(found),
        _said_of_sharing(found),
        _said_of_block_sizes(found.block_sizes),
        *_said_of_techniques(found),
        _said_of_study(found),
        *(f"Not sized: {q.words(code(of.techniques))}: {q.free_text(of.reason)}." for of in found.unsized),
    ]


def _said_of_requests(found: Serving) -> str:
    plan, load = found.plan, found.load
    return (
        f"{model(found)} in {plan.dtype} on {plan.gpu_gb:g}{q.GLUE}GB: the weights leave "
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
        f"{q.decimal(before.concurrent_mean, 1)}, {over(after.concurrent_mean, before.concurrent_mean)}, and goodput "
        f"is {over(goodput(after), goodput(before))}."
    )


def _said_of_knowledge(found: Serving) -> str:
    """What contiguous memory reaches that knows lengths beforehand, beside blocks that know nothing."""
    paged = _of(found, "paged")
    said = [
        f"one that {POLICIES[policy][1]}, fills {q.share(served.utilisation)} of that, {q.share(served.unusable)} of "
        "memory lies free in pieces that are too small, and goodput is "
        f"{over(goodput(served), goodput(paged))} that of blocks"
        for policy in ("contiguous_power_of_two", "contiguous_exact")
        for served in [_of(found, policy)]
    ]
    return f"Contiguous sequences whose length is known better: {'; '.join(said)}."


def _said_of_sharing(found: Serving) -> str:
    alone, shared, swapped = (_of(found, policy) for policy in ("paged", "paged_sharing", "paged_swapping"))
    return (
        f"Common prompts that are held once: {q.decimal(shared.concurrent_mean, 1)} sequences instead of "
        f"{q.decimal(alone.concurrent_mean, 1)}, {over(goodput(shared), goodput(alone))} the goodput. The pool ran "
        f"out {q.count(alone.n_preemptions)} times without sharing, so that {q.count(alone.n_recomputed)} tokens were "
        f"fed again; swapping instead, {q.count(swapped.n_preemptions)} times, at "
        f"{over(goodput(swapped), goodput(alone))} the goodput, what is moved not counted."
    )


def _said_of_block_sizes(found: Sequence[OfPolicy]) -> str:
    small, large = (min(found, key=_block), max(found, key=_block))
    best = max(goodput(of.served) for of in found)
    near = [str(of.block_size) for of in found if goodput(of.served) >= 0.99 * best]
    return (
        f"From blocks of {small.block_size} to blocks of {large.block_size}, utilisation goes from "
        f"{q.share(small.served.utilisation)} to {q.share(large.served.utilisation)} and goodput from "
        f"{q.decimal(goodput(small.served), 1)} to {q.decimal(goodput(large.served), 1)} tokens a step; within 1"
        f"{q.GLUE}% of the best: blocks of {q.words(near)}."
    )


def _said_of_techniques(found: Serving) -> list[str]:
    reference = goodput(baseline(found).served)
    groups = [
        ("that keep every token", [of for of in ranked(found) if of.size.keeps == 1 and BASELINE not in of.techniques]),
        ("that evict once, after the prompt", [of for of in ranked(found) if of.size.keeps < 1 and of.size.grows]),
        ("that evict in every step", [of for of in ranked(found) if of.size.keeps < 1 and not of.size.grows]),
    ]
    said = [
        f"of those {which}, {_first(members[0])} serves most, {over(goodput(members[0].served), reference)}, and "
        f"{_first(members[-1])} least, {over(goodput(members[-1].served), reference)}"
        if len(members) > 1
        else f"of those {which}, {_first(members[0])} serves {over(goodput(members[0].served), reference)}"
        for which, members in groups
        if members
    ]
    return [
        f"Goodput over that of the full cache, {q.decimal(reference, 1)} tokens a step: {'; '.join(said)}.",
        *_said_of_limits(found, reference),
    ]


def _said_of_limits(found: Serving, reference: float) -> list[str]:
    """Who serves less than the full cache, whom arrivals limit rather than memory, and what a step reads."""
    worse = [_first(of) for of in found.techniques if goodput(of.served) < reference]
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


def _block(of: OfPolicy) -> int:
    return of.block_size or 0


def _first(of: OfTechnique) -> str:
    """One name for those that are served alike."""
    name, *others = shown(of).split(", ")
    return f"{name} and {q.plural(len(others), 'other')} like it" if others else name
