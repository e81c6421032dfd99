"""Which techniques fit a model, a length, a batch and a memory, best first: from records and from shapes.

    python -m pipeline.advise model=llama_3_1_8b seq_len=32768 batch=16 memory_gb=24 min_quality=0.98
    python -m pipeline.advise seq_len=32768 batch=16 memory_gb=24 min_quality=0.98 quality_from=tiny
    python -m pipeline.advise model=hub model.path=ID_OR_FOLDER objective=memory     only config.json is read

Bytes are counted on shapes; decode steps and quality are those of records, and it is said where they were measured and
what of them is extrapolated. The quality of one model says nothing certain about another: it is taken over only where
quality_from says so. min_quality is the share of the full cache's recall that must be kept where the question comes
after eviction, the stricter protocol. All options and what they mean: conf/advise.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.refusals import COMPOSING, refusals


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from pipeline.advise.wish import wish

    with refusals((*COMPOSING, ValueError), "advise"):
        asked = wish(arguments)
        asked.question(asked.baseline).configured()
        from pipeline.findings import evidence

        rows = evidence.load(asked.results_path)
        from pipeline.advise import advisor, console

        advised = advisor.advise(asked, rows, console.followed)
    console.show(asked, advised)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
