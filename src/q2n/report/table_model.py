"""A table before it has a form: Markdown, CSV, terminal and page are made of the same one.

    group    |                 | WikiText-2                  |
    title    | method  step    | KL               perplexity |
    row      | gptq    Q2N     | 1.618 +- 0.052   189 +- 17  |

What is the same in every row stands in `constants` instead of a column.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from q2n.report.paired import Estimate


@dataclass(frozen=True)
class Quantity:
    """A number in a cell, with its standard error where that is known."""

    value: float
    error: float | None = None
    decimals: int | None = None
    """At least: a small error, or a small value without one, has as many as show its first digit.
    None: those that leave two digits of the error, or four of the value without one."""
    signed: bool = False
    """Whether a plus is written."""
    spread: float | None = None
    """Standard deviation over seeds, in brackets behind the error."""

    @classmethod
    def of(cls, found: Estimate | None, **how: Any) -> Self | None:
        """A mean with the error of its text, where there is one; `how` as the fields say it."""
        return None if found is None else cls(found.value, found.error, **how)

    def __str__(self) -> str:
        error = self.error
        if max(abs(self.value), error or 0.0) >= 1e6:
            return f"{self.value:.2g}" if error is None else f"{self.value:.2g} +- {error:.1g}"
        decimals = self._decimals()
        value = f"{self.value:{'+' if self.signed else ''}.{decimals}f}"
        shown = value if error is None else f"{value} +- {error:.{decimals}f}"
        return shown if self.spread is None else f"{shown} ({self.spread:.{decimals}f})"

    def _decimals(self) -> int:
        if self.decimals is not None:
            number = abs(self.error or self.value)
            return max(self.decimals, min(6, _first_digit(number)) if number else 0)
        scale, digits = (self.error, 2) if self.error else (abs(self.value), 4)
        return min(6, max(0, digits - 1 + _first_digit(scale))) if scale else 2


def rounded(value: float, decimals: int) -> str:
    """With more decimals where a small value needs them to show its first digit."""
    return str(Quantity(value, decimals=decimals))


def _first_digit(number: float) -> int:
    """Its place behind the point; 0 and less: before it, or it is infinite or none."""
    return -math.floor(math.log10(number)) if math.isfinite(number) else 0


Kind = Literal["label", "text", "number"]
"""Labels stand at the left and say what a row is."""
Cell = str | Quantity | None


@dataclass(frozen=True)
class Column:
    """One column."""

    title: str
    group: str = ""
    """Title that stands above several columns; empty: none."""
    kind: Kind = "number"

    @property
    def numeric(self) -> bool:
        """Whether it stands to the right."""
        return self.kind == "number"

    @property
    def name(self) -> str:
        """Title and group in one line."""
        return f"{self.group} {self.title}".strip()


@dataclass(frozen=True)
class TableRow:
    """One row."""

    cells: Sequence[Cell]
    """As many as columns."""
    refused: str = ""
    """Why a cell of it was not done, if one was not; the results are those of the others."""

    @property
    def has_results(self) -> bool:
        """Whether there is a number in it."""
        return any(isinstance(cell, Quantity) for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows."""

    name: str
    """Of the plan, or of what it shows."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]
    constants: Mapping[str, str] = field(default_factory=dict)
    """What is the same in every row."""
    notes: Sequence[str] = ()
    """What a reader must know of the columns, in sentences."""

    @property
    def caption(self) -> str:
        """Constants and notes in one line."""
        constants = ", ".join(f"{name} {value}" for name, value in self.constants.items())
        return " ".join([f"All rows: {constants}."] * bool(constants) + list(self.notes))

    @property
    def labels(self) -> int:
        """Number of columns at the left that say what a row is."""
        return sum(column.kind == "label" for column in self.columns)

    @property
    def has_refusals(self) -> bool:
        """Whether a cell of a row was not done."""
        return any(row.refused for row in self.rows)


Item = TypeVar("Item")


def filled(
    measures: Iterable[tuple[Column, Callable[[Item], Cell]]], items: Sequence[Item]
) -> tuple[list[Column], list[list[Cell]]]:
    """Columns and the cells of each item, without the columns in which no item has anything."""
    known = [(column, [of(item) for item in items]) for column, of in measures]
    used = [(column, cells) for column, cells in known if any(x is not None for x in cells)]
    return [column for column, _ in used], [[c[n] for _, c in used] for n in range(len(items))]
