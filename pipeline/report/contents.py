"""The list of sections that stands before the first of them, made from the headings that a text has."""

from __future__ import annotations

import re

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it from the text of a heading that stands once in its file."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def with_contents(text: str) -> str:
    """Markdown that has sections, with links to all of them before the first one."""
    headings = _SECTION.findall(text)
    links = " · ".join(f"[{heading.replace('`', '')}](#{anchor(heading)})" for heading in headings)
    return _SECTION.sub(lambda first: f"{links}\n\n{first[0]}", text, count=1)
