"""The page of one checkpoint (`q2n inspect --html`): its layers as figures and numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from q2n.report.block_record import LayerRecord
from q2n.report.figures.layers import layer_pictures
from q2n.report.kinds import kinds_of
from q2n.report.pages.render import render
from q2n.report.record import RunRecord
from q2n.report.table_model import Cell, Column, Quantity, Table, TableRow
from q2n.report.tables import bits_line

MEASURES = {
    "output_error": ("error %", 100.0, 2),
    "output_error_before": ("before %", 100.0, 2),
    "kept_rank": ("rank", 1.0, 0),
    "nullspace_energy": ("null %", 100.0, 2),
    "alpha_mean": ("alpha", 1.0, 3),
    "scales_mean": ("scales", 1.0, 3),
}
"""Note of a layer -> its title, factor and decimals."""
NOTES = (
    "Error: |(W - Q) X|² / |W X|² on the calibration text, before: without the null-space step.",
    "Rank: principal directions kept. Null: energy in the null space.",
    "Alpha, scales: mean over rows.",
)


def render_checkpoint(name: str, values: Mapping[str, Any]) -> str:
    """The whole file; `values` is what q2n.json holds."""
    record = RunRecord.from_json(values)
    pictures = layer_pictures("layers", name, kinds_of(values["layers"], {}))
    return render(
        "checkpoint",
        name=name,
        bits=bits_line(values),
        drawings=[Markup(picture.inline) for picture in pictures],
        tables=[_layers(record), _settings(record)],
        notes=record.notes,
    )


def _layers(record: RunRecord) -> Table:
    known = [key for key in MEASURES if any(key in x.notes for x in record.layers.values())]
    return Table(
        name="layers",
        title="Layers",
        columns=[
            Column("layer", kind="label"),
            Column("bits/weight"),
            *(Column(MEASURES[key][0]) for key in known),
        ],
        rows=[TableRow(_cells(name, layer, known)) for name, layer in record.layers.items()],
        notes=NOTES if known else (),
    )


def _cells(name: str, layer: LayerRecord, known: Sequence[str]) -> list[Cell]:
    return [
        name,
        Quantity(layer.bits_per_weight, decimals=2),
        *(_cell(layer.notes.get(key), *MEASURES[key][1:]) for key in known),
    ]


def _cell(value: Any, factor: float, decimals: int) -> Cell:
    return None if value is None else Quantity(factor * value, decimals=decimals)


def _settings(record: RunRecord) -> Table:
    set_ones = {name: value for name, value in record.settings.items() if value is not None}
    return Table(
        name="settings",
        title="Settings",
        columns=[Column("setting", kind="label"), Column("value", kind="text")],
        rows=[TableRow([name, str(value)]) for name, value in set_ones.items()],
    )
