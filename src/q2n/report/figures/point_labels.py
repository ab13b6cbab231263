"""Names of single points: each beside its own, on the first side where it covers nothing.

Sides are tried from near to far; a name that does not stand in the line of its point has a thin
line to it. Where there is no room, the point goes without.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from q2n.report.figures.labels import GAP, LETTERS, End
from q2n.report.figures.style import INCH, LETTER, MUTED, SMALL, told_apart

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""
Side = tuple[int, int]
"""To the right (1) or left (-1) of a point, and so many lines above it."""
SIDES: list[Side] = [(towards, up) for up in (0, 1, -1, 2, -2) for towards in (1, -1)]
BESIDE = 6
"""Points between a point and its name."""
LEADER = {"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}


def label_points(axes: Axes, ends: Sequence[End]) -> None:
    """Write the names into the axes, whose limits are final."""
    to_points = INCH / axes.figure.dpi
    found = [axes.transData.transform((end.x, end.y)) * to_points for end in ends]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in found]
    left, bottom, right, top = (float(x) * to_points for x in axes.bbox.extents)
    names = told_apart((end.text for end in ends), LETTERS)
    for end, (x, y) in zip(ends, found, strict=True):
        text = names[end.text]
        for side in SIDES:
            box = _box(x, y, side, LETTER * INCH * len(text))
            if _is_in(box, (left, bottom, right, top)) and not _covers(box, taken):
                taken.append(box)
                _write(axes, end, text, side)
                break


def _write(axes: Axes, end: End, text: str, side: Side) -> None:
    towards, up = side
    axes.annotate(
        text,
        (end.x, end.y),
        (BESIDE * towards, up * GAP),
        textcoords="offset points",
        ha="left" if towards > 0 else "right",
        va="center",
        fontsize=SMALL,
        arrowprops=LEADER if up else None,
    )


def _box(x: float, y: float, side: Side, width: float) -> Box:
    towards, up = side
    left = x + BESIDE if towards > 0 else x - BESIDE - width
    middle = y + up * GAP
    return left, middle - GAP / 2, left + width, middle + GAP / 2


def _is_in(box: Box, frame: Box) -> bool:
    return all(box[n] >= frame[n] and box[n + 2] <= frame[n + 2] for n in (0, 1))


def _covers(box: Box, others: Sequence[Box]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
