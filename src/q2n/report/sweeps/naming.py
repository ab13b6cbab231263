"""What rows of a plan are called: by the labels in which they differ."""

from collections.abc import Sequence

from q2n.report.sweeps.rows import Labels, Row, axes

MODEL, BITS = "model", "bits"
ORIGINAL = "original"


def constant_labels(rows: Sequence[Row]) -> Labels:
    """What is the same in every row that has it; where nothing else would be left to call the rows
    by, without the last of them."""
    places = {axis: [row.labels[axis] for row in rows if axis in row.labels] for axis in axes(rows)}
    same = {axis: found[0] for axis, found in places.items() if len(set(found)) == 1}
    if same and len(same) == len(places):
        same.popitem()
    return same


def varying_axes(rows: Sequence[Row]) -> list[str]:
    """The other labels."""
    constants = constant_labels(rows)
    return [axis for axis in axes(rows) if axis not in constants]


def name_of(row: Row, shown: Sequence[str]) -> str:
    """A row by its places on these axes, or by all where it has none of them."""
    if row.is_original:
        return ORIGINAL
    places = [str(row.labels[axis]) for axis in shown if axis in row.labels]
    return ", ".join(places or map(str, row.labels.values()))


def title_of(plan: str, rows: Sequence[Row]) -> str:
    """A heading for a plan."""
    title = rows[0].first.title
    return f"{plan}: {title}" if title else plan


def width_of(row: Row) -> str:
    """The bits of a row, as the plan calls them, or rounded to a whole number."""
    if BITS in row.labels:
        return str(row.labels[BITS])
    bits = row.mean("bits_per_weight")
    return "" if bits is None else f"{bits:.0f}"
