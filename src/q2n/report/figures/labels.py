"""Direct labels: names beside the ends of lines instead of a legend.

Every label wants to stand at the height of its line. Where they would lie on each other they are
pushed up, from the lowest on, and down, from the highest on: both keep order and distance, and so
does the mean of the two, which is where they stand. A thin line leads to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from q2n.report.figures.style import INCH, LETTER, SMALL, told_apart

GAP = 1.35 * SMALL
"""Points between the middles of two labels."""
LETTERS = 30
"""Of a label, at most."""


@dataclass(frozen=True)
class End:
    """Where a line ends, in data coordinates, and what it is called."""

    x: float
    y: float
    text: str
    colour: str


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, near the wanted ones, within low and high if there is room."""
    upwards = _pushed_up(wanted, gap, low, high)
    mirrored = _pushed_up([-x for x in reversed(wanted)], gap, -high, -low)
    return [(up - down) / 2 for up, down in zip(upwards, reversed(mirrored), strict=True)]


def _pushed_up(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    places = [max(low, wanted[n]) for n in order]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + gap)
    ceiling = high
    for n in reversed(range(len(places))):
        places[n] = min(places[n], ceiling)
        ceiling = places[n] - gap
    return [place for _, place in sorted(zip(order, places, strict=True))]


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write the names to the right of the axes, whose limits are final."""
    to_axes = axes.transData + axes.transAxes.inverted()
    found = [to_axes.transform((end.x, end.y)) for end in ends]
    gap = GAP / (axes.bbox.height * INCH / axes.figure.dpi)
    places = spread([float(y) for _, y in found], gap, 0.0, 1.0)
    names = told_apart((end.text for end in ends), LETTERS)
    for end, (x, y), place in zip(ends, found, places, strict=True):
        leader = Line2D([x, 1.05], [y, place], color=end.colour, lw=0.7, clip_on=False)
        leader.set_transform(axes.transAxes)
        axes.add_line(leader)
        name = names[end.text]
        axes.text(1.06, place, name, va="center", fontsize=SMALL, transform=axes.transAxes)


def room_for(names: Sequence[str]) -> float:
    """Inches that the names need at the right."""
    return 0.35 + LETTER * min(LETTERS, max(map(len, names), default=0))
