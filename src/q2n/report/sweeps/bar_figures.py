"""What a step gains, as bars: rows in groups around the row with which they are compared.

One group a row that others name (the paper's Figure 2: a method with and without the step; its
Figure 3: a solver and others in its place). The bar that the others are compared with is grey;
beside each of the others stands the difference, paired by windows, and its error. A bar whose
difference is not beyond its error is light.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from q2n.report.figures.frame import BOTTOM, TOP, frame
from q2n.report.figures.style import (
    INK,
    LETTER,
    REFERENCE,
    SERIES,
    SMALL,
    Picture,
    shortened,
    slug,
    styled,
    told_apart,
)
from q2n.report.paired import Estimate
from q2n.report.sweeps.naming import MODEL, name_of, varying_axes
from q2n.report.sweeps.rows import Row
from q2n.report.table_model import Quantity

PITCH, SPACE = 0.19, 0.3
"""Inches from one bar to the next; for the name of a group."""
LETTERS = 0.075
"""Inches of a letter at the left."""
NAME = 22
"""Letters of a bar's name, at most."""
LIGHT = SERIES[5]


@dataclass(frozen=True)
class Group:
    """A row and those that are compared with it."""

    reference: Row
    others: Sequence[Row]


@dataclass(frozen=True)
class Measure:
    """What the bars are as long as."""

    name: str
    label: str
    of: Callable[[Row], Estimate | None]
    less: Callable[[Row, Row], Estimate | None]
    """Difference of two rows; None where it is not known with an error."""
    decimals: int


def on_text(text: str) -> Measure:
    """KL on this text."""
    return Measure(
        text,
        f"KL from the original on {text}, nats a token",
        lambda row: row.on(text).divergence,
        lambda row, other: row.on(text).less(other.on(text)),
        3,
    )


def _accuracy(row: Row) -> Estimate | None:
    mean = row.mean_of_tasks("acc_norm") or row.mean_of_tasks("acc")
    return None if mean is None else mean.in_percent


ACCURACY = Measure("accuracy", "mean accuracy, %", _accuracy, lambda row, other: None, 1)
"""Mean over the tasks, acc_norm if it is known."""


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The rows that others are compared with, in the plan's order."""
    others: dict[frozenset, list[Row]] = {}
    for row in rows:
        if row.reference_key is not None and row.done:
            others.setdefault(row.reference_key, []).append(row)
    referred = [row for row in rows if row.key in others and row.done and not row.is_original]
    return [Group(row, others[row.key]) for row in referred]


def bar_pictures(plan: str, rows: Sequence[Row], measure: Measure) -> Iterator[Picture]:
    """One a model that has groups with this measure."""
    groups: dict[str, list[Group]] = {}
    for group in groups_of(rows):
        if measure.of(group.reference) is not None:
            groups.setdefault(str(group.reference.labels.get(MODEL, "")), []).append(group)
    shown = [axis for axis in varying_axes(rows) if axis != MODEL]
    for model, found in groups.items():
        yield _picture(plan, model, found, measure, shown)


@styled
def _picture(
    plan: str, model: str, groups: Sequence[Group], measure: Measure, shown: Sequence[str]
) -> Picture:
    compared = {axis for group in groups for row in group.others for axis in row.first.compare}
    inner, outer = [x for x in shown if x in compared], [x for x in shown if x not in compared]
    lines = _lines(groups, measure, inner, outer)
    names = told_apart((line.name for line in lines if line.value is not None), NAME)
    figure, axes = frame(
        model or plan,
        measure.label,
        height=TOP + BOTTOM + sum(line.height for line in lines),
        left=0.3 + LETTERS * max(map(len, names.values())),
        right=0.15 + LETTER * max(len(_number(line, measure)) for line in lines if line.value),
    )
    _draw(axes, lines, names, measure)
    return Picture(slug(plan, "bars", measure.name, model), _spoken(model, measure, lines), figure)


@dataclass(frozen=True)
class _Line:
    """A bar, or the name of a group where it has no value."""

    name: str
    value: Estimate | None = None
    less: Estimate | None = None
    is_reference: bool = False

    @property
    def height(self) -> float:
        return PITCH if self.value is not None else SPACE

    @property
    def colour(self) -> str:
        if self.is_reference:
            return REFERENCE
        return SERIES[0] if self.less is None or self.less.is_certain else LIGHT


def _lines(
    groups: Sequence[Group], measure: Measure, inner: Sequence[str], outer: Sequence[str]
) -> list[_Line]:
    lines: list[_Line] = []
    for group in groups:
        reference = group.reference
        if outer:
            lines.append(_Line(name_of(reference, outer)))
        lines.append(_Line(name_of(reference, inner), measure.of(reference), is_reference=True))
        lines += [
            _Line(name_of(row, inner), measure.of(row), measure.less(row, reference))
            for row in group.others
            if measure.of(row) is not None
        ]
    return lines


def _draw(axes: Axes, lines: Sequence[_Line], names: Mapping[str, str], measure: Measure) -> None:
    place = 0.0
    for line in lines:
        place += line.height
        if line.value is None:
            axes.text(
                0,
                place - 0.1,
                shortened(line.name, 40),
                va="center",
                fontweight="bold",
                fontsize=SMALL,
            )
        else:
            middle = place - PITCH / 2
            _draw_bar(axes, middle, line, line.value, measure)
            _beside(axes, 0.0, middle, names[line.name], -5.0)
    axes.set(ylim=(place, 0), yticks=[])
    axes.grid(axis="x")
    axes.set_xlim(left=0)


def _draw_bar(axes: Axes, middle: float, line: _Line, value: Estimate, measure: Measure) -> None:
    error = value.total_error or 0.0
    axes.barh(middle, value.value, 0.75 * PITCH, color=line.colour)
    axes.errorbar(value.value, middle, xerr=error, fmt="none", ecolor=INK, elinewidth=0.9)
    _beside(axes, value.value + error, middle, _number(line, measure), 5.0)


def _beside(axes: Axes, x: float, y: float, text: str, points: float) -> None:
    axes.annotate(
        text,
        (x, y),
        (points, 0),
        textcoords="offset points",
        ha="left" if points > 0 else "right",
        va="center",
        fontsize=SMALL,
    )


def _number(line: _Line, measure: Measure) -> str:
    """The value, and in brackets the difference with its error."""
    value, less = line.value, line.less
    assert value is not None
    text, _, _ = str(Quantity(value.value, value.total_error, measure.decimals)).partition(" +- ")
    if less is None:
        return text
    gain = str(Quantity(less.value, less.total_error, 3, signed=True)).replace("+-", "±")
    return f"{text} ({gain})"


def _spoken(model: str, measure: Measure, lines: Sequence[_Line]) -> str:
    bars = [f"{line.name} {_number(line, measure)}" if line.value else line.name for line in lines]
    return f"{measure.label}, {model}: {'; '.join(bars)}"
