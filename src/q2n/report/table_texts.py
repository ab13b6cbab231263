"""Tables as text: Markdown, CSV, and for a terminal."""

import csv
import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from q2n.report.markdown_text import in_markdown
from q2n.report.output import MARKS
from q2n.report.table_model import Cell, Quantity, Table, TableRow

UNSURE = ("error", "spread")
"""Fields of a quantity that say how sure it is."""


def markdown(tables: Sequence[Table], introduction: str) -> str:
    """All tables with their captions, under headings of the second level; before them a heading
    and a sentence on all of them."""
    lines = [MARKS["markdown"], "", "# Results", "", introduction]
    lines += [line for table in tables for line in _markdown(table)]
    return "\n".join(lines) + "\n"


def _markdown(table: Table) -> Iterator[str]:
    titles = [column.name for column in table.columns] + ["refused"] * table.has_refusals
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    yield from ("", f"## {in_markdown(table.title)}", "")
    yield _line(titles)
    yield _line(rules + ["---"] * table.has_refusals)
    for row in table.rows:
        yield _line(_texts(row, table.has_refusals))
    if table.caption:
        yield from ("", in_markdown(table.caption))


def _texts(row: TableRow, refusals: bool) -> list[str]:
    return [text(cell) for cell in row.cells] + [row.refused] * refusals


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"


def text(cell: Cell) -> str:
    """What a cell shows."""
    return "" if cell is None else str(cell)


def comma_separated(tables: Sequence[Table]) -> str:
    """All tables below each other; a value, its error and its spread are columns of their own, what
    is constant in one table is a column too."""
    names = dict.fromkeys(["table", *(name for table in tables for name in _csv_names(table))])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*names, "refused"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(line for table in tables for line in _csv_lines(table))
    return stream.getvalue()


def _csv_names(table: Table) -> Iterator[str]:
    yield from table.constants
    for n, column in enumerate(table.columns):
        yield column.name
        found = [x for row in table.rows if isinstance(x := row.cells[n], Quantity)]
        for what in UNSURE:
            if any(getattr(x, what) is not None for x in found):
                yield f"{column.name} {what}"


def _csv_lines(table: Table) -> Iterator[dict[str, str]]:
    for row in table.rows:
        line = {"table": table.name, **table.constants}
        for column, cell in zip(table.columns, row.cells, strict=True):
            if isinstance(cell, Quantity):
                line[column.name] = repr(cell.value)
                known = {what: x for what in UNSURE if (x := getattr(cell, what)) is not None}
                line |= {f"{column.name} {what}": repr(x) for what, x in known.items()}
            elif cell:
                line[column.name] = cell
        yield line | ({"refused": row.refused} if row.refused else {})


def print_table(table: Table, console: Console) -> None:
    """On a terminal, below each other where the columns are too wide to stand side by side."""
    parts = [_rich(table, columns) for columns in _parts(table, console.width)]
    console.print(table.title, markup=False, style="bold")
    for part in parts:
        console.print(part)
    for row in table.rows:
        if row.refused:
            name = ", ".join(x for x in map(text, row.cells[: table.labels]) if x)
            console.print(f"refused: {name}: {row.refused}", markup=False)
    console.print(table.caption, markup=False, style="dim")


def _parts(table: Table, width: int) -> list[list[int]]:
    """Places of the columns that fit side by side, the labels in each part."""
    labels = list(range(table.labels))
    free = width - 2 - sum(_width(table, n) for n in labels)
    parts: list[list[int]] = [[]]
    for n in range(table.labels, len(table.columns)):
        if parts[-1] and sum(_width(table, x) for x in (*parts[-1], n)) > free:
            parts.append([])
        parts[-1].append(n)
    return [labels + part for part in parts]


def _width(table: Table, n: int) -> int:
    """Of a column with the space beside it."""
    cells = [*_title(table, n).split("\n"), *(text(row.cells[n]) for row in table.rows)]
    return max(map(len, cells)) + 2


def _title(table: Table, n: int) -> str:
    column = table.columns[n]
    return f"{column.group}\n{column.title}" if column.group else column.title


def _rich(table: Table, columns: Sequence[int]) -> RichTable:
    made = RichTable(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for n in columns:
        numeric = table.columns[n].numeric
        made.add_column(
            escape(_title(table, n)),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="fold",
        )
    for row in table.rows:
        made.add_row(*(escape(text(row.cells[n])) for n in columns))
    return made
