"""Machines beside each other: what they share is found, and where they disagree is said."""

from __future__ import annotations

import math
import random
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.findings import evidence, orders
from pipeline.report import machines, ranking, render
from pipeline.report.parts import Part
from tests.pipeline.report import factory

SPEEDS = {"full": 1.0, "h2o": 0.9, "sliding_window": 0.5, "tova": 0.7}


def rows_of(tmp_path: Path, **speeds: dict[str, float]) -> list[evidence.Row]:
    """One machine for each keyword, with decode ratios by technique."""
    for machine, ratios in speeds.items():
        records = [factory.timed(name, ratio=ratio) for name, ratio in ratios.items()]
        factory.store(records, tmp_path, f"machine-{machine}")
    return evidence.load(tmp_path)


def by(title: str, part: Part) -> tuple[list[str], str]:
    """The line of the table of agreement for one quantity, and its sentence."""
    ((_, table),) = part.tables
    (line,) = [line for line in table.rows if line[0] == title]
    (sentence,) = [said for said in part.sentences if f"y {title.lower()}," in said]
    return list(line), sentence


def test_one_machine_needs_no_comparison(tmp_path: Path) -> None:
    assert machines.parts(rows_of(tmp_path, a=SPEEDS)) == []


def test_machines_that_agree_have_a_tau_of_one_and_no_swapped_pair(tmp_path: Path) -> None:
    slower = {name: 1.1 * ratio for name, ratio in SPEEDS.items()}
    (part,) = machines.parts(rows_of(tmp_path, a=SPEEDS, b=slower))
    line, sentence = by("Speed", part)
    assert line[-3:] == ["4", "1.00", "0"]
    assert sentence.startswith("No pair is surely the other way round")
    assert "speed, 512 tokens, batch 1 (1.00)" in sentence


def test_machines_that_disagree_name_the_pairs(tmp_path: Path) -> None:
    turned = {name: 2 - ratio for name, ratio in SPEEDS.items()}
    (part,) = machines.parts(rows_of(tmp_path, a=SPEEDS, b=turned))
    line, sentence = by("Speed", part)
    assert line[-3:] == ["4", "−1.00", "6"]
    assert "over 4 techniques the orders of `machine-a` and `machine-b` correlate with −1.00" in sentence
    assert "sliding_window before full" in sentence and "and 1 more." in sentence
    ((_, side_by_side), *_) = part.details
    assert [row[0] for row in side_by_side.rows] == ["sliding_window", "tova", "h2o", "full"]
    assert [heading for heading, _ in side_by_side.columns[1:]] == ["`machine-a`", "`machine-b`"]


def test_a_pair_whose_intervals_meet_on_one_machine_is_not_swapped(tmp_path: Path) -> None:
    near = SPEEDS | {"tova": 0.505, "sliding_window": 0.5}
    (part,) = machines.parts(rows_of(tmp_path, a=near, b=SPEEDS | {"tova": 0.5, "sliding_window": 0.7}))
    assert by("Speed", part)[0][-1] == "0"


def test_what_only_one_machine_measured_counts_nowhere(tmp_path: Path) -> None:
    (part,) = machines.parts(rows_of(tmp_path, a=SPEEDS, b=SPEEDS | {"snapkv": 0.1}))
    assert by("Speed", part)[0][-3] == "4"
    ((_, side_by_side), *_) = part.details
    assert side_by_side.rows[-1][:2] == ["snapkv", "–"]


def test_machines_of_another_device_and_dtype_are_compared_too(tmp_path: Path) -> None:
    factory.store([factory.timed(name, ratio=ratio) for name, ratio in SPEEDS.items()], tmp_path, "cpu")
    elsewhere = {"device": "cuda", "dtype": "bfloat16", "n_new_tokens": 257}
    factory.store([factory.timed(name, ratio=r, **elsewhere) for name, r in SPEEDS.items()], tmp_path, "gpu")
    (part,) = machines.parts(evidence.load(tmp_path))
    assert "`cpu` (float32, cpu, 33 new tokens), `gpu` (bfloat16, cuda, 257 new tokens)" in by("Speed", part)[0]


def test_ways_of_holding_weights_are_techniques_of_their_own(tmp_path: Path) -> None:
    ways = {"none": 1.0, "bnb_nf4": 1.4, "lorc": 1.2}
    for machine in ("a", "b"):
        factory.store(
            [factory.timed("full", ratio=r, level="system", weights=w) for w, r in ways.items()], tmp_path, machine
        )
    (part,) = machines.parts(evidence.load(tmp_path))
    ((_, side_by_side), *_) = part.details
    assert [row[0] for row in side_by_side.rows] == ["full", "full weights=lorc", "full weights=bnb_nf4"]


def test_machines_that_share_nothing_are_said_to(tmp_path: Path) -> None:
    (part,) = machines.parts(rows_of(tmp_path, a=SPEEDS, b={"full": 1.0}))
    assert part.sentences == ["No 3 techniques were measured in one setting on more than one machine."]


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_that_of_the_definition(seed: int) -> None:
    drawn = random.Random(seed)
    first, second = ([float(drawn.randrange(6)) for _ in range(12)] for _ in range(2))
    signs = [
        ((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)
    ]
    untied = [sum(sign != 0 for sign in side) for side in zip(*signs, strict=True)]
    tau = orders.tau_b(first, second)
    assert tau is not None and math.isclose(tau, sum(a * b for a, b in signs) / math.sqrt(math.prod(untied)))


def test_tau_of_what_orders_nothing_is_none() -> None:
    assert orders.tau_b([1, 1, 1], [1, 2, 3]) is None
    assert orders.tau_b([1, 2, 3], [10, 20, 30]) == pytest.approx(1)


def test_every_ranked_quantity_is_compared(tmp_path: Path) -> None:
    for machine in ("a", "b"):
        factory.store(
            [factory.judged(name, loss=loss / 4) for loss, name in enumerate(("full", "h2o", "tova"))],
            tmp_path,
            machine,
        )
        factory.store([factory.timed(name, ratio=ratio) for name, ratio in SPEEDS.items()], tmp_path, machine)
    compared = {line[0] for part in machines.parts(evidence.load(tmp_path)) for line in part.tables[0][1].rows}
    assert compared == {quantity.title for quantity in ranking.QUANTITIES}


@pytest.mark.usefixtures("undrawn")
def test_the_report_has_the_section_where_there_are_several(tmp_path: Path) -> None:
    rows_of(tmp_path / "results", a=SPEEDS)
    alone = render.render(tmp_path / "results", tmp_path / "reports")[render.REPORT].decode()
    rows_of(tmp_path / "results", b=SPEEDS)
    both = render.render(tmp_path / "results", tmp_path / "reports")[render.REPORT].decode()
    assert "## Several machines" in both and "## Several machines" not in alone
    assert "> Records of 2 machines, `machine-a` and `machine-b`" in both and "> Records of" not in alone
