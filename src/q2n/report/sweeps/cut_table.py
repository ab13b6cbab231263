"""Where the rules split the spectra: principal directions that each keeps, one row an input."""

from collections.abc import Sequence

from q2n.report.sweeps.naming import varying_axes
from q2n.report.sweeps.rows import Row
from q2n.report.table_model import Column, Quantity, Table, TableRow


def cut_table(plan: str, rows: Sequence[Row]) -> Table | None:
    """Of the first seed of each row, whose spectra stand for all; None without any."""
    found = [(row, spectrum) for row in rows for spectrum in row.first.spectra]
    rules = list(dict.fromkeys(rule for _, spectrum in found for rule in spectrum.cuts))
    shown = varying_axes(rows)
    if not found:
        return None
    return Table(
        name=f"{plan}, cuts",
        title=f"{plan}: principal directions kept",
        columns=[
            *(Column(axis, kind="label") for axis in (*shown, "input of")),
            *(Column(name) for name in ("width", *rules)),
        ],
        rows=[
            TableRow(
                [
                    *(str(row.labels.get(axis, "")) for axis in shown),
                    spectrum.layer,
                    Quantity(float(spectrum.width), decimals=0),
                    *(_kept(spectrum.cuts.get(rule)) for rule in rules),
                ]
            )
            for row, spectrum in found
        ],
    )


def _kept(kept: int | None) -> Quantity | None:
    return None if kept is None else Quantity(float(kept), decimals=0)
