"""The list of sections: every one of them, before the first."""

from __future__ import annotations

from pipeline.report.contents import anchor, with_contents


def test_all_sections_are_listed_before_the_first_and_nothing_else_changes() -> None:
    text = "# Title\n\nSaid.\n\n## One, two\n\n### Part\n\n## Of `tiny`: what?\n\nMore.\n"
    listed = "[One, two](#one-two) · [Of tiny: what?](#of-tiny-what)\n\n"
    assert with_contents(text) == text.replace("## One", f"{listed}## One")


def test_anchors_are_those_of_github() -> None:
    assert anchor("Who runs the model: vLLM, Transformers, our loop") == "who-runs-the-model-vllm-transformers-our-loop"
    assert anchor("Token level: rankings") == "token-level-rankings"
