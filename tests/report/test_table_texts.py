import csv
import io
import math

import pytest
from rich.console import Console
from sweep_records import sweep

from q2n.report.sweeps.report import Report
from q2n.report.sweeps.runs import Runs
from q2n.report.table_model import Column, Quantity, Table, TableRow
from q2n.report.table_texts import comma_separated, markdown, print_table

TABLE = Table(
    name="steps",
    title="Steps",
    columns=[Column("step", kind="label"), Column("KL", "C4"), Column("bits")],
    rows=[
        TableRow(["a | b", Quantity(0.5, 0.01234), Quantity(3.03, decimals=2)]),
        TableRow(["[c]", None, None], "InputError: no"),
    ],
    constants={"model": "SmolLM2"},
    notes=["KL: nats."],
)


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (Quantity(0.72149, 0.03012), "0.721 +- 0.030"),
        (Quantity(4251.4, 120.3), "4251 +- 120"),
        (Quantity(36.6337, 2.6776), "36.6 +- 2.7"),
        (Quantity(7.5e6, 4e5), "7.5e+06 +- 4e+05"),
        (Quantity(36.6337), "36.63"),
        (Quantity(0.00078, 0.000015, 3), "0.00078 +- 0.00002"),
        (Quantity(0.0, 0.0), "0.00 +- 0.00"),
        (Quantity(-0.93, 0.03, 3, True), "-0.930 +- 0.030"),
        (Quantity(0.93, None, 3, True), "+0.930"),
        (Quantity(0.93, 0.03, 3, spread=0.1), "0.930 +- 0.030 (0.100)"),
        (Quantity(1e-9), "0.000000"),
        (Quantity(0.00004, decimals=2), "0.00004"),
        (Quantity(0.3, decimals=0), "0.3"),
        (Quantity(0.0, decimals=1), "0.0"),
        (Quantity(math.nan, decimals=1), "nan"),
        (Quantity(0.5, math.nan), "0.5 +- nan"),
        (Quantity(-0.00123, decimals=2), "-0.001"),
    ],
)
def test_the_error_says_how_many_digits_are_shown(quantity, text) -> None:
    assert str(quantity) == text


def test_markdown_is_a_table_with_a_caption() -> None:
    lines = markdown([TABLE], "All of it.").splitlines()
    assert lines[1:5] == ["", "# Results", "", "All of it."]
    assert lines[5:] == [
        "",
        "## Steps",
        "",
        "| step | C4 KL | bits | refused |",
        "| --- | ---: | ---: | --- |",
        "| a \\| b | 0.500 +- 0.012 | 3.03 |  |",
        "| [c] |  |  | InputError: no |",
        "",
        "All rows: model SmolLM2. KL: nats.",
    ]


def test_csv_has_whole_numbers_with_errors_of_their_own() -> None:
    first, second = csv.DictReader(io.StringIO(comma_separated([TABLE])))
    assert first == {
        "table": "steps",
        "model": "SmolLM2",
        "step": "a | b",
        "C4 KL": "0.5",
        "C4 KL error": "0.01234",
        "bits": "3.03",
        "refused": "",
    }
    assert second["refused"] == "InputError: no" and second["step"] == "[c]"


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_shows_every_number_whole(width) -> None:
    """What is too wide goes below, and nothing is cut."""
    tables = Report(Runs(sweep(seeds=(0, 1)), [])).tables
    console = Console(width=width, record=True, file=io.StringIO())
    for table in [*tables, TABLE]:
        print_table(table, console)
    shown = console.export_text()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for table in tables:
        for row in table.rows:
            assert all(str(x) in shown for x in row.cells if isinstance(x, Quantity))
    assert "refused: [c]: InputError: no" in shown
