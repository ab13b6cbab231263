"""Direct labels: names beside the ends of lines instead of a legend.

Every label wants to stand at the height of its line. Where they would lie on each other they are
pushed up, from the lowest on, and down, from the highest on: both keep order and distance, and so
does the mean of the two, which is where they stand. A thin line leads to each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from q2n.report.figures.style import INCH, LETTER, MUTED, SMALL, shortened

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
    for end, (x, y), place in zip(ends, found, places, strict=True):
        leader = Line2D([x, 1.05], [y, place], color=end.colour, lw=0.7, clip_on=False)
        leader.set_transform(axes.transAxes)
        axes.add_line(leader)
        name = shortened(end.text, LETTERS)
        axes.text(1.06, place, name, va="center", fontsize=SMALL, transform=axes.transAxes)


def room_for(names: Sequence[str]) -> float:
    """Inches that the names need at the right."""
    return 0.35 + LETTER * min(LETTERS, max(map(len, names), default=0))


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""
SIDES = [(towards, up) for up in (0, 1, -1, 2, -2) for towards in (1, -1)]
"""Of a point: to the right or left of it, and so many lines above."""
LEADER = {"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
"""From a name that does not stand beside its point."""


def label_points(axes: Axes, ends: Sequence[End]) -> None:
    """Write each name beside its own point, on the first side where it covers nothing; where there
    is no room, the point goes without."""
    to_points = INCH / axes.figure.dpi
    found = [axes.transData.transform((end.x, end.y)) * to_points for end in ends]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in found]
    left, bottom, right, top = (float(x) * to_points for x in axes.bbox.extents)
    for end, (x, y) in zip(ends, found, strict=True):
        text = shortened(end.text, LETTERS)
        boxes = [_box(x, y, side, LETTER * INCH * len(text)) for side in SIDES]
        free = [
            n
            for n, box in enumerate(boxes)
            if _is_in(box, (left, bottom, right, top)) and not _covers(box, taken)
        ]
        if not free:
            continue
        taken.append(boxes[free[0]])
        towards, up = SIDES[free[0]]
        axes.annotate(
            text,
            (end.x, end.y),
            (6 * towards, up * GAP),
            textcoords="offset points",
            ha="left" if towards > 0 else "right",
            va="center",
            fontsize=SMALL,
            arrowprops=LEADER if up else None,
        )


def _box(x: float, y: float, side: tuple[int, int], width: float) -> Box:
    towards, up = side
    left = x + 6 if towards > 0 else x - 6 - width
    middle = y + up * GAP
    return left, middle - GAP / 2, left + width, middle + GAP / 2


def _is_in(box: Box, frame: Box) -> bool:
    return all(box[n] >= frame[n] and box[n + 2] <= frame[n + 2] for n in (0, 1))


def _covers(box: Box, others: Sequence[Box]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
