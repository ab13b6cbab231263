"""What quantization and the null-space step did to each linear, block by block: one line a kind
(q_proj, ...), named at its end."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from q2n.report.experiment import KindOfLayer
from q2n.report.figures.frame import frame, frames, note
from q2n.report.figures.labels import End, label_ends, room_for
from q2n.report.figures.style import INK, SERIES, Picture, log_scale, slug, styled

Line = tuple[Sequence[int], Sequence[float | None]]
"""Block numbers and values; None where a layer has none."""
Lines = Mapping[str, Line]
"""By kind of linear."""
COLOURS = (*SERIES, INK)


@dataclass(frozen=True)
class Panel:
    """One quantity of all linears."""

    name: str
    title: str
    subtitle: str
    lines: Lines
    before: Lines
    """Drawn thin and dashed."""
    is_log: bool


def panels_of(layers: Mapping[str, KindOfLayer]) -> list[Panel]:
    """Output error, and factors of the step or, without it, output scales: those that are known."""

    def lines(what: str) -> Lines:
        found = {kind: (each.blocks, getattr(each, what)) for kind, each in layers.items()}
        return {k: line for k, line in found.items() if any(x is not None for x in line[1])}

    before, alpha, scales = lines("output_error_before"), lines("alpha"), lines("output_scales")
    label = "|(W - Q) X|² / |W X|²" + (", dashed: before the step" if before else "")
    found = [
        Panel("error", "output error", label, lines("output_error"), before, is_log=True),
        Panel("alpha", "alpha", "mean factor over rows", alpha, {}, is_log=False),
    ]
    if not alpha:
        found[1] = Panel("scales", "output scales", "mean factor", scales, {}, is_log=False)
    return [panel for panel in found if panel.lines]


def layer_pictures(name: str, title: str, layers: Mapping[str, KindOfLayer]) -> Iterator[Picture]:
    """One a panel; `title` says of what."""
    for panel in panels_of(layers):
        yield _picture(name, title, panel)


@styled
def _picture(name: str, title: str, panel: Panel) -> Picture:
    right = room_for(list(panel.lines))
    figure, axes = frame(title, f"{panel.title}: {panel.subtitle}", right=right)
    draw_panel(axes, panel)
    return Picture(slug(name, panel.name), f"{panel.title} by block, {title}", figure)


@styled
def panels_side_by_side(name: str, panels: Sequence[Panel]) -> Picture:
    """All in one figure."""
    right = room_for([kind for panel in panels for kind in panel.lines])
    figure, axes = frames([(x.title, x.subtitle) for x in panels], right=right)
    for each, panel in zip(axes, panels, strict=True):
        draw_panel(each, panel)
    return Picture(name, " and ".join(panel.title for panel in panels), figure)


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Lines with their names. A logarithmic height has no place for 0: that is said."""
    ends = []
    for n, (kind, (blocks, values)) in enumerate(panel.lines.items()):
        colour, numbers = COLOURS[n % len(COLOURS)], _numbers(values, panel.is_log)
        known = [(float(x), y) for x, y in zip(blocks, numbers, strict=True) if y == y]  # no NaN
        if not known:
            continue
        axes.plot(blocks, numbers, color=colour, marker="o" if len(known) == 1 else None)
        if kind in panel.before:
            before = _numbers(panel.before[kind][1], panel.is_log)
            axes.plot(blocks, before, "--", color=colour, lw=0.7)
        ends.append(End(*known[-1], kind, colour))
    axes.set_xlabel("block")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if panel.is_log and any(x == 0 for _, line in panel.lines.values() for x in line):
        note(axes, "0 is not shown")
    if not ends:
        axes.set(xticks=[], yticks=[])
    elif panel.is_log:
        log_scale(axes)
    else:
        axes.autoscale_view()
    label_ends(axes, ends)


def _numbers(values: Sequence[float | None], is_log: bool) -> list[float]:
    """NaN, which leaves a gap, for those that are not known or have no place."""
    return [math.nan if x is None or (is_log and x <= 0) else x for x in values]
