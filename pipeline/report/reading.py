"""What a reader has to know first: what the report rests on, how its numbers are meant, and what is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.findings import quantities as q
from pipeline.findings import verdicts
from pipeline.findings.evidence import ABLATION, MODEL, Row
from pipeline.findings.means import PROTOCOL
from pipeline.report.sentences import status


def statement(rows: Sequence[Row]) -> str:
    """What the report rests on."""
    machines = len({row.hardware_id for row in rows})
    strategies = len({row.strategy for row in rows if row.cell.level not in (ABLATION, MODEL)})
    trained = len({row.cell.model for row in rows if row.cell.level == MODEL})
    counted = [q.plural(strategies, "technique"), *([q.plural(trained, "architecture")] if trained else [])]
    return (
        f"Computed from {q.plural(len(rows), 'record')} of {q.plural(machines, 'machine')} "
        f"({q.words(counted)}): {status(rows)}."
    )


def how_to_read() -> list[str]:
    aware, agnostic = PROTOCOL["query_aware"], PROTOCOL["query_agnostic"]
    return [
        f"A ratio compares a technique with the full cache, timed in turns in the same process: below {q.ratio(1)} is "
        f"{verdicts.FASTER}, above is {verdicts.SLOWER}. Brackets hold the 95 % interval.",
        "The full cache is also timed against itself (the same work as an arm of its own), which shows the *noise*. "
        "*full, once more* is the full cache in the place of a technique. "
        f"Where a technique's interval reaches {q.ratio(1)} or the noise, or its estimate lies less than "
        f"{q.share(verdicts.RELEVANT_SPEED)} from {q.ratio(1)}, the word is “{verdicts.NO_DIFFERENCE}”. Where the "
        f"interval reaches them and, stretched by the noise, has an upper end above {q.ratio(verdicts.TOO_WIDE)} of "
        f"its lower one, it is “{verdicts.UNDECIDED}”: nothing can be said. Where there was a single trial it is "
        f"“{verdicts.ONE_SAMPLE}”, and that is no verdict. Engines have no such arm: there the interval of the ratio, "
        "which is over the trials of both, is judged alone.",
        "*First token* is the time to read the prompt (TTFT), *decode step* the time for each token after it (TPOT).",
        "*KV held* is what the cache has allocated after the last token, *share* that over the full cache's. Both are "
        "measured, for cost where time was measured and for quality on the very items that were scored (their mean, "
        "of one sequence).",
        "*Peak memory* is the weights and the most that all other tensors took at once, during the prompt or in a "
        "decode step. Steps are counted untimed, on a copy of the cache; where they are slow, only the first few.",
        "Quality is measured on the evolving cache, item by item against the full cache; a difference is called one "
        f"only where its 95 % interval leaves zero out, at {verdicts.DECIMALS} decimals. Differences stand in brackets "
        "behind what was reached.",
        f"*{aware}*: the question was in the prompt when the cache evicted, and is asked again. *{agnostic}*: it came "
        f"afterwards. Under the {aware} protocol the question's own kept tokens have attended to the whole prompt, so "
        f"a part of a window's {aware} score is what the question carried over. The {agnostic} score is the stricter "
        "one, and quality is ranked by it.",
        "The tasks hide facts (a key and its value) in text and ask for a value. *single needle*: one fact. *multi "
        "key 8* and *32*: one of so many. *multi query*: eight of 32. *variable tracking*: the last of four "
        "assignments to one of two variables. *most frequent*: the value that one key was given most often.",
        f"A task counts where the full cache itself answers at least {q.share(verdicts.ANSWERED)} of its items; below, "
        f"it is “{verdicts.NOT_ANSWERED}” and in no mean: what a model cannot do, no cache can spoil.",
        "Text, as haystack and for its loss, is the one that a record names: held-out files of Python's standard "
        "library, if nothing else was given.",
        "*Stability* is p90 over p50 of all decode steps, with a bootstrap over steps. Steps that follow each other "
        "are not quite independent, so that its interval is rather too narrow.",
        "Random eviction keeps one fixed random sample: its seed is in its record, and another seed would give other "
        "numbers.",
        "A technique beyond the length that its model was trained on, or on a model with random weights, is there for "
        "cost only. Trained architectures are asked beyond it as well (workload `extrapolation`): what they recall "
        "there says how a model extrapolates, is marked so, and is in no ranking and no verdict.",
    ]


def what_is_drawn(rows: Iterable[Row], in_detail: str) -> list[str]:
    """Nothing to say of one machine, of which everything is drawn."""
    if len({row.hardware_id for row in rows}) < 2:
        return []
    return [
        f"Figures step by step, by depth and of single techniques are those of machine `{in_detail}`, which has most "
        "records; figures that compare techniques are there for every machine."
    ]
