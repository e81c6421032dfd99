"""The cases of the plan, as counted on paper."""

from __future__ import annotations

from pipeline.serving import plan
from pipeline.serving.cases import counted
from pipeline.serving.plan import Study
from strategies.system.blocks import BlockManager
from tests.pipeline.serving.plans import small

CASES = plan.asked([])[0].cases
FOUND = counted(CASES, BlockManager)


def test_lengths_in_contiguous_memory_and_in_blocks() -> None:
    first, second = FOUND.fills
    assert (first.n_tokens, first.n_contiguous, first.n_blocks) == (147, 400, 11)
    assert f"{147 / 400:.1%} {147 / 176:.1%}" == "36.8% 83.5%" and first.n_blocks * first.asked.block_size == 176
    assert (second.n_tokens, second.n_contiguous, second.n_blocks * second.asked.block_size) == (19, 30, 24)


def test_a_sequence_takes_a_block_when_it_needs_one() -> None:
    assert FOUND.growth.n_blocks == [0, 1, 1, 2, 3]


def test_beams_share_their_prefix() -> None:
    assert (FOUND.beams.n_blocks, FOUND.beams.n_blocks_unshared) == (6, 12)


def test_what_an_earlier_study_said_is_counted_again() -> None:
    assert (FOUND.study.asked.n_contiguous, FOUND.study.n_slots, FOUND.study.n_paged) == (50, 102_400, 256)
    longer = Study(n_contiguous=50, n_said=200, max_len=2048, mean_len=512, block_size=16)
    assert counted(CASES.model_copy(update={"study": longer}), BlockManager).study.n_paged == 200


def test_other_cases_have_other_answers() -> None:
    other = small("cases.growth={lengths: [1, 9], block_size: 8}", "cases.beams.n=4").cases
    assert counted(other, BlockManager).growth.n_blocks == [1, 2]
    assert counted(other, BlockManager).beams.n_blocks == 3 + 4
