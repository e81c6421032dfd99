"""One axis at a time as a figure: differences from the axis's default part, all else equal."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.findings import quantities as q
from pipeline.findings.means import PROTOCOL, STRICTER
from pipeline.record import Interval
from pipeline.report import captions
from pipeline.report.ablations.axes import Compared, Varied, part_name
from pipeline.report.drawing import REFERENCE, ROW_IN, across, figure, mark, name_rows

AROUND_IN = 1.15
NARROWEST = 0.02  # an axis shows at least this far to either side: less is nothing
Line = tuple[str, Compared | None]  # without a comparison it names what those below it are compared with


def drawn(found: Sequence[Varied], compared: Sequence[Sequence[Compared]]) -> list[tuple[str, str, Figure]]:
    """File name, alternative text, figure; nothing where no recall was compared."""
    lines: list[Line] = []
    differences: dict[str, float] = {}
    for of, others in zip(found, compared, strict=True):
        shown: list[Line] = [(part_name(item.row, of), item) for item in others if item.recall]
        kept = of.kept.replace("`", "")
        if shown:
            lines += [(f"{part_name(of.rows[0], of)}: {kept}", None), *shown]
        differences |= {
            f"{name}, {kept}": item.recall[STRICTER][0].estimate
            for name, item in shown
            if item and STRICTER in item.recall
        }
    if not lines:
        return []
    axis = found[0].axis
    text = f"{PROTOCOL[STRICTER]} recall by {q.task(axis)}, less the default's: {captions.span(differences, q.signed)}"
    return [(f"axis_{axis}", text, _figure(lines))]


def _figure(lines: Sequence[Line]) -> Figure:
    canvas = figure(AROUND_IN + 0.9 * ROW_IN * len(lines))
    panels = canvas.subplots(1, 3, sharey=True)
    for axes, (protocol, title) in zip(panels, PROTOCOL.items(), strict=False):
        _draw(
            axes, lines, [item.recall[protocol][0] if item and protocol in item.recall else None for _, item in lines]
        )
        axes.set_title(f"recall, {title}")
    _draw(panels[-1], lines, [item.text if item else None for _, item in lines])
    panels[-1].set_title("loss on text, nats")
    name_rows(panels, [name for name, _ in lines])
    for tick, (_, item) in zip(panels[0].get_yticklabels(), lines, strict=True):
        tick.set(fontsize=8, fontweight="normal" if item else "bold")
    canvas.supxlabel(f"difference from what stands in bold above, with 95{q.GLUE}% interval", fontsize=10)
    return canvas


def _draw(axes: Axes, lines: Sequence[Line], values: Sequence[Interval | None]) -> None:
    axes.axvline(0, color=REFERENCE, linewidth=1)
    ends = [-NARROWEST, NARROWEST]
    for height, ((_, item), value) in enumerate(zip(lines, values, strict=True)):
        if item and value:
            across(axes, value, height, mark(item.row.strategy))
            ends += [value.low, value.high]
    room = 0.06 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", q.MINUS)))
    axes.tick_params(axis="x", labelsize=8)
