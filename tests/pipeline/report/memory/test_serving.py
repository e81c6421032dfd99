"""Tables, sentences and figures of serving follow the file."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from pipeline import ROOT
from pipeline.findings import quantities as q
from pipeline.report import drawing
from pipeline.report.memory import serving, serving_plots, serving_sentences
from pipeline.serving import plan, results
from pipeline.serving.cases import counted
from pipeline.serving.results import Load, OfPolicy, OfTechnique, Policy, Served, Serving, Size, Unsized
from strategies.system.blocks import BlockManager

GIB = 2**30


def served(goodput: float, concurrent: float, **changed: Any) -> Served:
    found = Served(
        n_slots=8192,
        n_arrived=100,
        n_finished=60,
        n_running=10,
        n_waiting=30,
        utilisation=0.5,
        held=0.4,
        unfilled=0.4,
        unusable=0.1,
        concurrent_mean=concurrent,
        concurrent_peak=round(2 * concurrent),
        n_preemptions=7,
        n_recomputed=700,
        finished_tokens_per_step=goodput,
        waiting_steps=12.0,
    )
    return found.model_copy(update=changed)


def technique(goodput: float, *names: str, keeps: float = 1.0, grows: bool = True, **changed: Any) -> OfTechnique:
    size = Size(slot_bytes=131072, fixed=0, keeps=keeps, grows=grows)
    return OfTechnique(techniques=list(names), size=size, served=served(goodput, goodput, **changed))


POLICIES: dict[Policy, Served] = {
    "contiguous_longest": served(10, 10, utilisation=0.25),
    "contiguous_power_of_two": served(20, 20),
    "contiguous_exact": served(25, 25),
    "paged": served(40, 40, utilisation=0.95, unusable=0.0),
    "paged_swapping": served(44, 40, unusable=0.0),
    "paged_sharing": served(60, 60, unusable=0.0),
}


@cache
def found() -> Serving:
    asked = plan.asked([])[0]
    load = Load(n_requests=100, n_sharing=50, prompt_mean=400, output_mean=100, longest=2048)
    return Serving(
        plan=asked,
        weight_bytes=16 * GIB,
        room_bytes=8 * GIB,
        load=load,
        policies=[OfPolicy(policy=name, block_size=None, served=of) for name, of in POLICIES.items()],
        block_sizes=[
            OfPolicy(policy="paged", block_size=n, served=served(50 - n / 8, 40, utilisation=1 - n / 800, unusable=0.0))
            for n in asked.block_sizes
        ],
        techniques_load=load,
        techniques=[
            technique(40, "adapted", "full"),
            technique(80, "codes"),
            technique(60, "pairs", held=0.8),
            technique(100, "chosen", "picked", keeps=0.25),
            technique(400, "window", keeps=0.25, grows=False, n_waiting=0),
        ],
        unsized=[Unsized(techniques=["nothing"], reason="it holds | nothing")],
        cases=counted(asked.cases, BlockManager),
    )


def said(of: Serving) -> str:
    return "\n".join(serving_sentences.sentences(of))


def test_a_line_for_each_policy_block_size_and_technique() -> None:
    policies, blocks, techniques, _ = (table for _, table in serving.tables(found()))
    assert [row[0] for row in policies.rows] == [serving.title(policy) for policy in POLICIES]
    assert policies.rows[0][2:6] == [q.share(share) for share in (0.25, 0.4, 0.4, 0.1)]
    assert [row[0] for row in blocks.rows] == [str(n) for n in found().plan.block_sizes]
    names = [row[0] for row in techniques.rows]
    assert names == ["`window`", "`chosen`, `picked`", "`codes`", "`pairs`", "`full`, `adapted`"]
    assert [row[-1] for row in techniques.rows] == [q.ratio(ratio) for ratio in (10, 2.5, 2, 1.5, 1)]
    assert all(len(row) == len(table.columns) for _, table in serving.tables(found()) for row in table.rows)


def test_cases_are_those_of_paper() -> None:
    rows = {row[0]: row[1:] for row in serving.tables(found())[-1][1].rows}
    share = f"147/400, 36.8{q.GLUE}%"
    assert rows["Lengths 23, 67, 45, 12"] == [f"100 each: {share}", f"11 blocks of 16: 147/176, 83.5{q.GLUE}%"]
    assert rows["Lengths 10, 7, 2"] == [f"10 each: 19/30, 63.3{q.GLUE}%", f"6 blocks of 4: 19/24, 79.2{q.GLUE}%"]
    assert rows["A sequence that grows to 0, 5, 12, 23, 40 tokens"][1] == "0, 1, 1, 2, 3 blocks of 16"
    assert ["12 blocks", "6 blocks"] in rows.values() and ["50 sequences", "256 sequences"] in rows.values()


def test_what_is_said_is_computed() -> None:
    text = said(found())
    assert f"Llama 3.1 8B in bfloat16 on 24{q.GLUE}GB: the weights leave 8.00{q.GLUE}GiB" in text
    assert f"{q.share(0.25)} of what is reserved holds any; in blocks of 16, {q.share(0.95)}" in text
    assert f"40.0 sequences run at once instead of 10.0, {q.ratio(4)}, and goodput is {q.ratio(4)}." in text
    assert f"{q.share(0.1)} of memory lies free in pieces that are too small, and goodput is {q.ratio(0.5)}" in text
    assert f"60.0 sequences instead of 40.0, {q.ratio(1.5)} the goodput" in text
    assert f"at {q.ratio(1.1)} the goodput" in text
    assert f"goodput from 49.9 to 34.0 tokens a step; within 1{q.GLUE}% of the best: blocks of 1 and 4." in text
    assert f"`codes` serves most, {q.ratio(2)}, and `pairs` least, {q.ratio(1.5)}" in text
    assert f"that evict once, after the prompt, `chosen` and 1 other like it serves {q.ratio(2.5)}" in text
    assert "Nobody waits at the end with `window`" in text and "Below the full cache" not in text
    assert f"A step has 3.20{q.GLUE}GiB to 6.40{q.GLUE}GiB" in text
    assert "`nothing`: it holds \\| nothing." in text


def test_an_earlier_study_is_counted_again() -> None:
    text = said(found())
    assert "102,400 slots, and the allocator finds room there for 256 sequences of 400 tokens, not 200;" in text
    assert "200 would have 512 tokens each" in text and "it is 10.0 against 40.0." in text
    right = found().cases.study.model_copy(update={"n_paged": 200})
    cases = found().cases.model_copy(update={"study": right})
    assert "200 sequences of 400 tokens, as it said;" in said(found().model_copy(update={"cases": cases}))


@pytest.mark.parametrize(
    ("policy", "line"),
    [("contiguous_longest", 1), ("contiguous_exact", 2), ("paged_sharing", 3), ("paged_swapping", 3)],
)
def test_other_results_are_other_sentences(policy: Policy, line: int) -> None:
    changed = [
        of.model_copy(update={"served": served(3, 5, utilisation=0.11)}) if of.policy == policy else of
        for of in found().policies
    ]
    other = serving_sentences.sentences(found().model_copy(update={"policies": changed}))
    assert other[line] != serving_sentences.sentences(found())[line]


def test_who_serves_less_than_the_full_cache_is_named() -> None:
    slower = found().model_copy(update={"techniques": [*found().techniques, technique(20, "worse")]})
    assert "Below the full cache: `worse`." in said(slower)


def test_figures_show_what_the_tables_say() -> None:
    pictures = {name: figure for name, _, figure in serving_plots.drawn(found())}
    memory, techniques = pictures["serving"].axes, pictures["serving_techniques"].axes[0]
    bars: Any = memory[0].patches
    assert [bar.get_width() for bar in bars[: len(POLICIES)]] == [of.held for of in POLICIES.values()]
    ends = [bar.get_x() + bar.get_width() for bar in bars[-len(POLICIES) :]]
    assert ends == pytest.approx([1] * len(POLICIES))
    assert list(memory[1].lines[0].get_ydata()) == [of.served.utilisation for of in found().block_sizes]
    heights: Any = techniques.patches
    assert [bar.get_width() for bar in heights] == [40, 60, 80, 100, 400]


def test_figures_are_the_same_twice() -> None:
    for (_, _, once), (_, _, again) in zip(serving_plots.drawn(found()), serving_plots.drawn(found()), strict=True):
        assert drawing.save(once, "svg") == drawing.save(again, "svg")


def test_what_is_committed_answers_the_plan_that_is_committed() -> None:
    committed = results.read(ROOT / "results")
    assert committed is not None and committed.plan == plan.asked([])[0]
