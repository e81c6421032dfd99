"""What must show because a mechanism demands it, on any model that recalls: if it does not, the cache is broken.

How one scorer does against another is no mechanism but depends on the model; it is reported and never judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline import answers, tasks
from pipeline.intervals import bootstrap
from pipeline.judgement import Gate, Rule, passes
from pipeline.refusals import CONF
from pipeline.significance import holm, p_below_zero

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from pipeline.quality import NewDecoder, Protocol
    from pipeline.tasks import RecallItems

N_ITEMS = 200
N_DRAWN = 12  # items for each one that lies at a given depth
N_BOOTSTRAP = 2000
SEQ_LEN = 512
SEED = 0
# As in the paper's LongBench runs. Its other window, 32, is most of a budget of 10 % of 512 tokens, and of its queries
# only the last two ask anything.
SNAPKV = ("snapkv", "strategy.scorer.window_size=8", "strategy.scorer.kernel_size=7", "strategy.scorer.pooling=max")


@dataclass(frozen=True)
class Lab:
    """The recall items of a model, and what a technique answers to them; `text` [n] is what it was not trained on."""

    model: PreTrainedModel
    text: Tensor
    n_items: int = N_ITEMS
    arm: Callable[..., NewDecoder] = answers.arm

    @cached_property
    def needles(self) -> RecallItems:
        return tasks.recall_items("single_needle", SEQ_LEN, self.n_items, SEED, self.text)

    @cached_property
    def among_others(self) -> RecallItems:
        return tasks.recall_items("multi_key_8", SEQ_LEN, self.n_items, SEED, self.text)

    @cached_property
    def many_needles(self) -> RecallItems:
        return tasks.recall_items("single_needle", SEQ_LEN, N_DRAWN * self.n_items, SEED, self.text)

    def needles_at(self, depth: float) -> RecallItems:
        """Of many items those with the needle nearest to `depth`."""
        drawn = self.many_needles
        nearest = (drawn.depth - depth).abs().argsort()[: self.n_items]
        parts = (drawn.context, drawn.question, drawn.answer, drawn.depth)
        return tasks.RecallItems(*(part[nearest] for part in parts))

    def correct(
        self,
        technique: str,
        *overrides: str,
        share: float | None = None,
        protocol: Protocol = "query_agnostic",
        items: RecallItems | None = None,
    ) -> Tensor:
        """[N] 1 where the item is answered, at a budget of that `share` of the tokens."""
        budget = None if share is None else round(share * SEQ_LEN)
        asked = self.needles if items is None else items
        new_decoder = self.arm(self.model, technique, *overrides, kv_budget=budget)
        return answers.correct(answers.replies(new_decoder, asked, protocol), asked)


def judge(lab: Lab) -> list[Gate]:
    return [*window(lab), *question(lab), *eight_bits(lab), *oracle(lab), *budgets(lab)]


def window(lab: Lab) -> list[Gate]:
    """What has left a window is lost, and what is in it is not."""
    kept = {depth: lab.correct("sliding_window", share=0.25, items=lab.needles_at(depth)) for depth in (0.1, 0.9)}
    return [
        gate("window of 25 %, needle at depth 0.1", kept[0.1], "at most", 0.2),
        gate("window of 25 %, needle at depth 0.9", kept[0.9], "at least", 0.9),
    ]


def question(lab: Lab) -> list[Gate]:
    """An observation window that holds the question keeps what it asks for, and cannot without it."""
    aware = lab.correct(*SNAPKV, share=0.1, protocol="query_aware")
    full = lab.correct("full", protocol="query_aware")
    agnostic = lab.correct(*SNAPKV, share=0.1)
    return [
        gate("SnapKV at 10 %, question in the prompt, over full", aware - full, "at least", -0.05),
        gate("SnapKV at 10 %, question in the prompt, over question unseen", aware - agnostic, "at least", 0.2),
    ]


def eight_bits(lab: Lab) -> list[Gate]:
    return [gate("8 bits over full", lab.correct("kv_int8") - lab.correct("full"), "at least", -0.02)]


def oracle(lab: Lab) -> list[Gate]:
    """Knowing what will be attended to is at least as good as any guess, at the same budget and schedule."""
    scorers = sorted(path.stem for path in (CONF / "strategy/scorer").glob("*.yaml") if path.stem != "oracle")
    best = lab.correct("oracle", share=0.1, items=lab.among_others)
    compared = {
        f"oracle over {scorer}, both at 10 %": best
        - lab.correct("oracle", f"strategy/scorer={scorer}", share=0.1, items=lab.among_others)
        for scorer in scorers
    }
    return family(compared)


def budgets(lab: Lab) -> list[Gate]:
    """More budget never hurts."""
    shares = (0.05, 0.1, 0.25, 0.5, 0.75)
    kept = {share: lab.correct(*SNAPKV, share=share) for share in shares}
    steps = itertools.pairwise(shares)
    return family({f"SnapKV at {100 * high:g} % over {100 * low:g} %": kept[high] - kept[low] for low, high in steps})


def family(compared: dict[str, Tensor]) -> list[Gate]:
    """Differences [N] of which none may lie significantly below 0, corrected for their number."""
    p_values = holm([p_below_zero(difference.tolist(), SEED) for difference in compared.values()])
    pairs = zip(compared.items(), p_values, strict=True)
    return [gate(name, difference, "not below", 0.0, p_value=p_value) for (name, difference), p_value in pairs]


def gate(
    name: str, samples: Tensor, rule: Rule, bound: float, unit: str = "accuracy", p_value: float | None = None
) -> Gate:
    """Of the mean of `samples`, one for each item."""
    interval = bootstrap(samples.tolist(), N_BOOTSTRAP, SEED)
    passed = passes(rule, interval.estimate, bound, interval, p_value)
    return Gate(
        name=name, unit=unit, seq_len=SEQ_LEN, value=interval.estimate, bound=bound, n=interval.n, passed=passed,
        rule=rule, interval=interval, p_value=p_value,
    )  # fmt: skip
