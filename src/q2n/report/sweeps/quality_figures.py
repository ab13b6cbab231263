"""Quality against what it costs: KL from the original over bits per weight, size or time.

One figure a model and text. A line joins rows that differ in their bits alone. The height is
logarithmic: methods differ by factors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from q2n.report.figures.frame import frame, note
from q2n.report.figures.labels import End, label_ends, label_points, room_for
from q2n.report.figures.style import GRID, MARKERS, SERIES, Picture, log_scale, slug, styled
from q2n.report.paired import Estimate
from q2n.report.sweeps.naming import BITS, MODEL, name_of, varying_axes
from q2n.report.sweeps.rows import Row

SIZES = (BITS, "group_size", "groups")
"""Axes along which a line goes."""
APART = 1.03
"""Costs that differ by less are one cost, and need no figure."""
NAMED = 10
"""Lines at most that have a colour and a name; those with the least KL."""


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
    hidden = (MODEL, *SIZES) if cost.is_line else (MODEL,)
    shown = [axis for axis in varying_axes(rows) if axis not in hidden]
    for model in models:
        mine = [row for row in rows if str(row.labels.get(MODEL, "")) == model]
        lines = _lines(mine, cost, text, shown)
        costs = [point.x for line in lines.values() for point in line]
        if costs and max(costs) > APART * min(costs):
            yield _picture(plan, model, text, cost, lines)


def _lines(
    rows: Sequence[Row], cost: Cost, text: str, shown: Sequence[str]
) -> dict[str, list[Point]]:
    """Name -> points from left to right; names with the least KL first."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        x, y = cost.of(row), row.on(text).divergence
        if x is not None and y is not None and y.value > 0:
            lines.setdefault(name_of(row, shown), []).append(Point(x, y))
    for line in lines.values():
        line.sort(key=lambda point: point.x)
    return dict(sorted(lines.items(), key=lambda item: min(p.y.value for p in item[1])))


@styled
def _picture(
    plan: str, model: str, text: str, cost: Cost, lines: dict[str, list[Point]]
) -> Picture:
    named, others = dict(list(lines.items())[:NAMED]), list(lines.values())[NAMED:]
    title = f"{model} on {text}" if model else text
    room = room_for(list(named)) if cost.is_line else 0.6
    figure, axes = frame(title, "KL from the original, nats a token", right=room)
    for points in others:
        axes.plot([p.x for p in points], [p.y.value for p in points], "o-", color=GRID)
    ends = [_draw(axes, n, name, points) for n, (name, points) in enumerate(named.items())]
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
    spoken = f"KL from the original over {cost.label}, {title}; least: {best}"
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
