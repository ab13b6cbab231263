"""Empty axes with a heading each, side by side, and the room around them in inches."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from q2n.report.figures.style import INCH, MUTED, SIZE, SMALL, shortened

WIDTH, HEIGHT = 4.8, 3.2
LEFT, TOP, BOTTOM = 0.6, 0.62, 0.5
LETTERS = (50, 70)
"""Of the two lines of a heading, at most."""


def frame(
    title: str,
    subtitle: str,
    *,
    height: float = HEIGHT,
    left: float = LEFT,
    right: float = 0.2,
) -> tuple[Figure, Axes]:
    """One pair of axes: a title, and below it what the height means; no text stands on its side."""
    figure, (axes,) = frames([(title, subtitle)], height=height, left=left, right=right)
    return figure, axes


def frames(
    headings: Sequence[tuple[str, str]],
    *,
    height: float = HEIGHT,
    left: float = LEFT,
    right: float = 0.2,
) -> tuple[Figure, list[Axes]]:
    """Several, from left to right."""
    whole = WIDTH * len(headings)
    figure, drawn = Figure(figsize=(whole, height)), []
    for n, (title, subtitle) in enumerate(headings):
        start, width = (n * WIDTH + left) / whole, (WIDTH - left - right) / whole
        axes = figure.add_axes((start, BOTTOM / height, width, (height - TOP - BOTTOM) / height))
        most, more = LETTERS
        _line(axes, shortened(title, most), 24.0, left, fontsize=SIZE + 1, fontweight="bold")
        _line(axes, shortened(subtitle, more), 11.0, left, fontsize=SMALL, color=MUTED)
        axes.grid(axis="y")
        drawn.append(axes)
    return figure, drawn


def _line(axes: Axes, text: str, above: float, left: float, **how: Any) -> None:
    """A line of the heading, from the left edge of the figure; `above` in points."""
    place = (2 - left * INCH, above)
    axes.annotate(text, (0, 1), place, "axes fraction", "offset points", **how)


def note(axes: Axes, text: str) -> None:
    """A word in the lower right corner of its part of the figure, where nothing is drawn."""
    parts = axes.figure.axes
    corner = ((parts.index(axes) + 1) / len(parts), 0)
    how: dict[str, Any] = {"ha": "right", "color": MUTED, "fontsize": 7}
    axes.annotate(text, corner, (-2, 4), "figure fraction", "offset points", **how)
