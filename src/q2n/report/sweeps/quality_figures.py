"""Quality against what it costs: KL from the original over bits per weight, size or time.

One figure a model and text. A line joins rows that differ on one axis of the plan alone, the one
that says what they cost (bits, type of the file). The height is logarithmic: methods differ by
factors. Where no KL was measured it is the perplexity.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from matplotlib.axes import Axes

from q2n.report.figures.frame import frame, note
from q2n.report.figures.labels import End, label_ends, room_for
from q2n.report.figures.point_labels import label_points
from q2n.report.figures.style import GRID, MARKERS, SERIES, Picture, log_scale, slug, styled
from q2n.report.paired import Estimate
from q2n.report.sweeps.naming import MODEL, name_of, varying_axes
from q2n.report.sweeps.rows import OnText, Row

APART = 1.03
"""Costs that differ by less are one cost, and need no figure."""
LEFT = 0.25
"""Share of the variance of the costs."""
NAMED = 10
"""Lines at most that have a colour and a name; the best."""


@dataclass(frozen=True)
class Cost:
    """What stands on the horizontal axis."""

    name: str
    label: str
    of: Callable[[Row], float | None]
    is_line: bool = True
    """Whether rows that differ in their bits alone are joined; otherwise each stands for itself."""


COSTS = (
    Cost("bits", "bits per quantized weight", lambda row: row.mean("bits_per_weight")),
    Cost("bytes", "MB on disk, embeddings included", lambda row: _in(1e6, row.mean("bytes"))),
    Cost("time", "seconds to quantize", lambda row: row.seconds("quantization"), is_line=False),
)


@dataclass(frozen=True)
class Quality:
    """What stands on the vertical axis."""

    label: str
    of: Callable[[OnText], Estimate | None]


KL = Quality("KL from the original, nats a token", lambda on: on.divergence)
QUALITIES = (KL, Quality("perplexity", lambda on: on.perplexity))


def _in(unit: float, value: float | None) -> float | None:
    return None if value is None else value / unit


@dataclass(frozen=True)
class Point:
    """One row in a figure."""

    x: float
    y: Estimate


def quality_pictures(plan: str, rows: Sequence[Row], cost: Cost, text: str) -> Iterator[Picture]:
    """One a model that was measured on this text at several costs."""
    models = dict.fromkeys(str(row.labels.get(MODEL, "")) for row in rows)
    axes = [axis for axis in varying_axes(rows) if axis != MODEL]
    for model in models:
        mine = [row for row in rows if str(row.labels.get(MODEL, "")) == model]
        along = axis_of_cost(mine, cost, axes) if cost.is_line else None
        shown = [axis for axis in axes if axis != along]
        what = next((x for x in QUALITIES if any(x.of(row.on(text)) for row in mine)), KL)
        lines = _lines(mine, cost, what, text, shown)
        costs = [point.x for line in lines.values() for point in line]
        if costs and max(costs) > APART * min(costs):
            names = list(dict.fromkeys(name_of(row, shown) for row in rows if not row.is_original))
            yield _picture(plan, model, text, cost, what, lines, names)


def axis_of_cost(rows: Sequence[Row], cost: Cost, axes: Sequence[str]) -> str | None:
    """The axis whose places say best what a row costs: of which least variance of the cost is left
    within its places, and less than `LEFT` of all; None if there is none."""
    known = [(row.labels, math.log(x)) for row in rows if (x := cost.of(row)) and x > 0]
    if len(known) < 3:
        return None

    def left(axis: str) -> float:
        places: dict[object, list[float]] = {}
        for labels, x in known:
            places.setdefault(labels.get(axis), []).append(x)
        free = len(known) - len(places)
        squares = sum((x - fmean(values)) ** 2 for values in places.values() for x in values)
        return squares / free if free else math.inf

    best = min(axes, key=left, default=None)
    return best if best is not None and left(best) < LEFT * variance(x for _, x in known) else None


def _lines(
    rows: Sequence[Row], cost: Cost, what: Quality, text: str, shown: Sequence[str]
) -> dict[str, list[Point]]:
    """Name -> points from left to right; the best first."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        x, y = cost.of(row), what.of(row.on(text))
        if x is not None and y is not None and y.value > 0 and not row.is_original:
            lines.setdefault(name_of(row, shown), []).append(Point(x, y))
    for line in lines.values():
        line.sort(key=lambda point: point.x)
    return dict(sorted(lines.items(), key=lambda item: min(p.y.value for p in item[1])))


@styled
def _picture(
    plan: str,
    model: str,
    text: str,
    cost: Cost,
    what: Quality,
    lines: dict[str, list[Point]],
    names: list[str],
) -> Picture:
    """A name has the same colour in the figures of all models: that of its place in the plan."""
    named, others = dict(list(lines.items())[:NAMED]), list(lines.values())[NAMED:]
    title = f"{model} on {text}" if model else text
    room = room_for(list(named)) if cost.is_line else 0.6
    figure, axes = frame(title, what.label, right=room)
    for points in others:
        axes.plot([p.x for p in points], [p.y.value for p in points], "o-", color=GRID)
    ends = [_draw(axes, names.index(name), name, points) for name, points in named.items()]
    if others:
        note(axes, f"{len(others)} more in grey")
    axes.set_xlabel(cost.label)
    axes.margins(x=0.08, y=0.08)
    log_scale(axes)
    if cost.is_line:
        label_ends(axes, ends)
    else:
        log_scale(axes, "x")
        label_points(axes, ends)
    best = ", ".join(f"{x} {min(p.y.value for p in named[x]):.3f}" for x in list(named)[:3])
    spoken = f"{what.label} over {cost.label}, {title}; least: {best}"
    return Picture(slug(plan, cost.name, model, text), spoken, figure)


def _draw(axes: Axes, number: int, name: str, points: Sequence[Point]) -> End:
    colour = SERIES[number % len(SERIES)]
    axes.errorbar(
        [p.x for p in points],
        [p.y.value for p in points],
        [min(p.y.total_error or 0.0, 0.9 * p.y.value) for p in points],
        fmt=f"{MARKERS[number % len(MARKERS)]}-",
        color=colour,
        elinewidth=0.9,
    )
    return End(points[-1].x, points[-1].y.value, name, colour)
