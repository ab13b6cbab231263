"""What searches tried, on held-out text: one row a trial."""

from collections.abc import Sequence
from typing import Any

from q2n.report.sweeps.naming import varying_axes
from q2n.report.sweeps.rows import SEED, Row
from q2n.report.table_model import Cell, Column, Quantity, Table, TableRow

NAMES = {"divergence": "KL"}


def search_table(plan: str, rows: Sequence[Row]) -> Table | None:
    """All trials of a plan; None where nothing was searched."""
    shown = [*varying_axes(rows), SEED]
    cells = [cell for row in rows for cell in row.done.values() if cell.tried]
    if not cells:
        return None
    names = list(dict.fromkeys(name for cell in cells for trial in cell.tried for name in trial))
    return Table(
        name=f"{plan}, trials",
        title=f"{plan}: trials of the search",
        columns=[
            *(Column(axis, kind="label") for axis in (*shown, "trial")),
            *(Column(NAMES.get(name, name)) for name in names),
            Column("chosen", kind="text"),
        ],
        rows=[
            TableRow(
                [
                    *(str(cell.labels.get(axis, "")) for axis in shown),
                    str(number),
                    *(_cell(name, trial.get(name)) for name in names),
                    "yes" if cell.chosen and cell.chosen.items() <= trial.items() else "",
                ]
            )
            for cell in cells
            for number, trial in enumerate(cell.tried, 1)
        ],
        notes=["In the order in which they were tried; KL: of the held-out text."],
    )


def _cell(name: str, value: Any) -> Cell:
    """A value of an option is shown as it was given."""
    if name in NAMES and isinstance(value, int | float):
        return Quantity(float(value))
    return None if value is None else str(value)
