"""What of a record is followed while a grid runs."""

from __future__ import annotations

import pytest

from pipeline import metrics
from tests.pipeline.report.system import test_engines


@pytest.mark.parametrize(("n_served", "is_told"), [(None, True), (8, True), (2, False)])
def test_how_long_some_requests_waited_is_not_followed_as_if_it_were_all(n_served: int | None, is_told: bool) -> None:
    record = test_engines.made("vllm", 90, 8)
    assert record.throughput is not None
    alone = record.throughput.one_by_one.model_copy(update={"n_requests": n_served})
    throughput = record.throughput.model_copy(update={"one_by_one": alone})
    row = metrics.cell_row(record.model_copy(update={"throughput": throughput}))
    assert ("throughput/ttft_s_one_by_one" in row) is is_told
    assert {"throughput/ttft_s", "throughput/ttft_s_batch", "throughput/tokens_per_s_one_by_one"} <= row.keys()
