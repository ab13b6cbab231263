"""Seconds by kind of linear (the paper's Table 3), all layers of a kind together."""

from collections.abc import Sequence
from statistics import fmean

from q2n.report.sweeps.naming import constant_labels, varying_axes
from q2n.report.sweeps.rows import Row
from q2n.report.table_model import Column, Quantity, Table, TableRow


def time_table(plan: str, rows: Sequence[Row]) -> Table | None:
    """One row for each row and thing that takes time; None where no time was kept."""
    timed = [row for row in rows if _things(row)]
    kinds = list(dict.fromkeys(kind for row in timed for kind in row.first.layers))
    if not timed:
        return None
    shown = varying_axes(rows)
    return Table(
        name=f"{plan}, seconds",
        title=f"{plan}: seconds by kind of layer",
        columns=[
            *(Column(axis, kind="label") for axis in shown),
            Column("seconds of", kind="label"),
            *(Column(kind) for kind in kinds),
            Column("sum"),
        ],
        rows=[
            TableRow(
                [
                    *(str(row.labels.get(x, "")) for x in shown),
                    _named(thing),
                    *_cells(row, thing, kinds),
                ]
            )
            for row in timed
            for thing in _things(row)
        ],
        constants={axis: str(value) for axis, value in constant_labels(rows).items()},
        notes=["All layers of a kind together."],
    )


def _things(row: Row) -> list[str]:
    kinds = [kind for cell in row.done.values() for kind in cell.layers.values()]
    return list(dict.fromkeys(thing for kind in kinds for thing in kind.seconds))


def _named(thing: str) -> str:
    """solver_seconds is of the solver, seconds is of everything."""
    return thing.removesuffix("seconds").rstrip("_") or "all"


def _cells(row: Row, thing: str, kinds: Sequence[str]) -> list[Quantity | None]:
    means = [_mean(row, thing, kind) for kind in kinds]
    total = sum((mean for mean in means if mean is not None), 0.0)
    return [None if x is None else Quantity(x, decimals=2) for x in (*means, total)]


def _mean(row: Row, thing: str, kind: str) -> float | None:
    times = [cell.layers[kind].seconds for cell in row.done.values() if kind in cell.layers]
    values = [seconds[thing] for seconds in times if thing in seconds]
    return fmean(values) if values else None
