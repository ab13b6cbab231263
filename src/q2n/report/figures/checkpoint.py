"""The pictures of one checkpoint (`q2n inspect --plot`), written to a file."""

from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from q2n.errors import InputError
from q2n.evaluation.block_costs import BlockCosts
from q2n.report.figures.layers import Panel, panels_of, panels_side_by_side
from q2n.report.figures.style import Picture
from q2n.report.kinds import kind_names, kinds_of
from q2n.report.output import require_place
from q2n.report.record import RunRecord


def require_picture(file: Path) -> None:
    """Refuse a name under which no picture can be written, before there is one.

    Raises:
        InputError: no format has this ending, or there is no such folder.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.lower().lstrip(".") not in formats:
        raise InputError(
            f"{file} is no name of a picture; they end in .{', .'.join(sorted(formats))}"
        )
    require_place(file)


def plot_layers(record: RunRecord, file: Path) -> None:
    """Output error (a ratio of squares) of every quantized linear, block by block, and the mean of
    the factors on its scales: alpha of the null-space step or, without it, the output scales.

    With the null-space step dashed lines are the error before it.

    Raises:
        InputError: the record holds no output errors, or the file cannot be written.
    """
    panels = panels_of(kinds_of(record.to_json()["layers"], {}))
    if not any(panel.name == "error" for panel in panels):
        raise InputError("nothing to plot: no layer of this record has an output error")
    _save(panels_side_by_side("layers", panels), file)


def plot_costs(costs: BlockCosts, file: Path) -> None:
    """The divergence that each block costs alone and with all before it, and the output error of
    every linear, block by block.

    Raises:
        InputError: the file cannot be written.
    """
    numbers = list(range(len(costs.blocks)))
    blocks = {
        "alone": (numbers, [block.alone.divergence for block in costs.blocks]),
        "up to here": (numbers, [block.up_to_here.divergence for block in costs.blocks]),
    }
    layers: dict[str, tuple[list[int], list[float | None]]] = {}
    kinds = kind_names(name for block in costs.blocks for name in block.layers)
    for number, block in enumerate(costs.blocks):
        for name, change in block.layers.items():
            places, errors = layers.setdefault(kinds[name], ([], []))
            places.append(number)
            errors.append(change.relative_error)
    panels = [
        Panel("costs", "blocks", "KL, nats a token", blocks, {}, is_log=True),
        Panel("error", "layers", "|(W - Q) X|² / |W X|²", layers, {}, is_log=True),
    ]
    _save(panels_side_by_side("costs", panels), file)


def _save(picture: Picture, file: Path) -> None:
    try:
        picture.save(file)
    except (OSError, ValueError, RuntimeError) as cause:
        raise InputError(f"{file} cannot be written as a picture: {cause}") from cause
