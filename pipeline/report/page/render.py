"""One page from the Markdown files of the report: the same tables, to be sorted and filtered, and charts to look into.

The page is made of the Markdown itself, so that it cannot say anything else. It needs nothing but its own file:
plotly.js draws the charts and DataTables sorts and filters, both from `vendor/`, unchanged and with their licences.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from pipeline.report import contents
from pipeline.report.page import order as page_order
from pipeline.report.page.charts import Chart

PAGE = "index.html"
FIRST = "report.md"
HERE = Path(__file__).parent
LIBRARIES = ("plotly-basic.min.js", "dataTables.min.js")
RIGHT = "text-align:right"
N_COLORS = 64


@dataclass(frozen=True)
class Heading:
    level: int
    anchor: str
    text: str


@dataclass
class Document:
    """One Markdown file on its way into the page."""

    name: str
    headings: list[Heading] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)  # paths of the charts that stand for its pictures
    html: str = ""

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def build(files: Mapping[str, bytes], charts: Mapping[str, Chart], environment: Environment) -> bytes:
    """Of all Markdown in `files`, with pictures from there where no chart has the same path (without suffix)."""
    names = sorted((name for name in files if name.endswith(".md")), key=lambda name: (name != FIRST, name))
    documents = [_document(name, files, charts) for name in names]
    drawn = {path: charts[path].json for document in documents for path in document.drawn}
    return (
        environment.get_template("page/page.html.j2")
        .render(
            documents=documents,
            charts=json.dumps(drawn, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/"),
            style=(HERE / "page.css").read_text(),
            script=(HERE / "page.js").read_text(),
            libraries=[(HERE / "vendor" / name).read_text() for name in LIBRARIES],
            licences=[path.read_text() for path in sorted((HERE / "vendor").glob("*LICENSE.txt"))],
        )
        .encode()
    )


def _document(name: str, files: Mapping[str, bytes], charts: Mapping[str, Chart]) -> Document:
    document, parser = Document(name), MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(files[name].decode())
    _anchor(tokens, document)
    _mark_cells(tokens)
    _link(tokens, document, {other for other in files if other.endswith(".md")})
    _hang(tokens, document, files, charts)
    html = parser.renderer.render(tokens, parser.options, {})
    document.html = html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    return document


def _anchor(tokens: Sequence[Token], document: Document) -> None:
    """Headings get the anchors that GitHub gives them, after the name of their file where that is not the report."""
    taken: dict[str, int] = {}
    for opening, content in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            level, text = int(opening.tag[1]), _text(content)
            slug = contents.anchor(text)
            number = taken[slug] = taken.get(slug, -1) + 1
            anchor = document.stem if level == 1 else _target(document.name, f"{slug}-{number}" if number else slug)
            opening.attrSet("id", anchor)
            document.headings.append(Heading(level, anchor, text))


def _target(name: str, anchor: str) -> str:
    stem = Path(name).stem
    return anchor if name == FIRST else f"{stem}-{anchor}"


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])


def _mark_cells(tokens: Sequence[Token]) -> None:
    """Columns on the right are numbers, and each of their cells says by what it sorts."""
    for cell, content in itertools.pairwise(tokens):
        if cell.type in {"th_open", "td_open"}:
            style = cell.attrs.pop("style", "")
            if style == RIGHT:
                cell.attrSet("class", "number")
                if cell.type == "td_open":
                    found = page_order.key(_text(content))
                    cell.attrSet("data-order", "" if found is None else repr(found))


def _link(tokens: Sequence[Token], document: Document, others: set[str]) -> None:
    """A link to a file that is in the page too, or into its own file, leads to a place in the page."""
    for link in _children(tokens, "link_open"):
        name, _, anchor = str(link.attrGet("href")).partition("#")
        if name in others or not name:
            name = name or document.name
            link.attrSet("href", f"#{_target(name, anchor) if anchor else Path(name).stem}")
        elif name.startswith("https:"):
            link.attrSet("rel", "noreferrer")


def _children(tokens: Sequence[Token], kind: str) -> Iterator[Token]:
    return (child for token in tokens for child in token.children or [] if child.type == kind)


def _hang(tokens: Sequence[Token], document: Document, files: Mapping[str, bytes], charts: Mapping[str, Chart]) -> None:
    """A paragraph with nothing but a picture becomes the chart of the same name, or holds the picture itself."""
    for opening, inline, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
        pictures = [child for child in inline.children or [] if child.type == "image"]
        if opening.type == "paragraph_open" and len(pictures) == 1 and len(inline.children or []) <= 3:
            path = str(Path(str(pictures[0].attrGet("src"))).with_suffix(""))
            if path in charts and any(view.traces for view in charts[path].views):
                document.drawn.append(path)
                html = f'<div class="plot" data-chart="{escape(path)}"></div>'
            else:
                html = f'<img alt="" loading="lazy" src="{_embedded(files[f"{path}.png"])}">'
            opening.hidden = closing.hidden = True
            caption = f"<figcaption>{escape(pictures[0].content)}</figcaption>"
            inline.children = [Token("html_inline", "", 0, content=f"<figure>{html}{caption}</figure>\n")]


def _embedded(picture: bytes) -> str:
    """A PNG as a data URI, in so few colours that a page of many stays small; a plot has no more."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE).save(
        smaller, "PNG", optimize=True
    )
    return f"data:image/png;base64,{base64.b64encode(smaller.getvalue()).decode()}"
