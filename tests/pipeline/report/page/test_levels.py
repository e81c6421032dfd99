"""Views of engines say what they show: a rate where all requests are there, how long they wait where lengths differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.findings import quantities as q
from pipeline.report.page import levels
from tests.pipeline.report.system.test_engines import ARRIVING, made, rows


def test_requests_that_arrive_have_a_view_of_their_waiting_and_none_of_a_rate(tmp_path: Path) -> None:
    found = rows(tmp_path, made("vllm", 90), made("vllm", 200, 32), made("vllm", 120, **ARRIVING))
    charts = levels.of_engines(found)
    (rates,), (waits,) = charts["engines"].views, charts["engines_waiting"].views
    assert rates.name == "bench, 64 tokens, 33 new" and rates.traces[0]["y"] == [90, 200]
    assert waits.name == f"bench, 8 prompts of about 64 tokens, about 33 new, arriving over 2.50{q.GLUE}s"
    (wait,) = waits.traces
    assert wait["y"] == [0.1] and wait["error_y"]["array"] == [pytest.approx(0.1)]  # up to what nine in ten stay below
    assert "first token" in waits.y["title"]
